package container

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/cgroups"
)

// Stats are a guest's live figures.
type Stats struct {
	CPU time.Duration // user and system time of all processes, ended ones too
	// Mem is anonymous memory + mapped file pages + shared memory, in bytes: what
	// the guest needs, without the page cache the kernel could drop. Mapped shared
	// memory counts twice in the kernel's sums, so Mem is at most the group's usage.
	Mem  uint64
	PIDs uint64 // processes and threads
}

// Stats reads the figures from the cgroups; 0 where the host has no such controller.
func (c *Container) Stats() (Stats, error) {
	cpu, err := c.cpu()
	if err != nil {
		return Stats{}, fmt.Errorf("reading cpu time of container %s: %w", c.id, err)
	}
	mem, err := c.mem()
	if err != nil {
		return Stats{}, fmt.Errorf("reading memory use of container %s: %w", c.id, err)
	}
	pids, err := optional(groupNumber(c.controller("pids"), "pids.current"))
	if err != nil {
		return Stats{}, fmt.Errorf("counting processes of container %s: %w", c.id, err)
	}
	return Stats{CPU: cpu, Mem: mem, PIDs: pids}, nil
}

// CPU is the cpu time that all processes of the container have used so far.
func (c *Container) CPU() (time.Duration, error) {
	d, err := c.cpu()
	if err != nil {
		return 0, fmt.Errorf("reading cpu time of container %s: %w", c.id, err)
	}
	return d, nil
}

// Throttled counts the periods in which the cpu limit held the container back.
func (c *Container) Throttled() (uint64, error) {
	n, err := optional(groupValue(c.controller("cpu"), "cpu.stat", "nr_throttled"))
	if err != nil {
		return 0, fmt.Errorf("reading cpu throttling of container %s: %w", c.id, err)
	}
	return n, nil
}

// CPUGroup is the directory of the cgroup that has the cpu limit; "" where there is none.
func (c *Container) CPUGroup() string { return c.controller("cpu") }

// OOMKills counts the processes that the kernel killed for the memory limit.
func (c *Container) OOMKills() (uint64, error) {
	file := "memory.oom_control"
	if cgroups.IsCgroup2UnifiedMode() {
		file = "memory.events"
	}
	n, err := optional(groupValue(c.controller("memory"), file, "oom_kill"))
	if err != nil {
		return 0, fmt.Errorf("reading memory events of container %s: %w", c.id, err)
	}
	return n, nil
}

// controller is the directory in which the files of a controller are.
func (c *Container) controller(name string) string {
	if cgroups.IsCgroup2UnifiedMode() {
		return c.groups()[""]
	}
	return c.groups()[name]
}

func (c *Container) cpu() (time.Duration, error) {
	dir := c.groups()["cpuacct"]
	if dir == "" { // cgroup2 counts without a controller
		dir = c.groups()[""]
		us, err := optional(groupValue(dir, "cpu.stat", "usage_usec"))
		return time.Duration(us) * time.Microsecond, err
	}
	ns, err := optional(groupNumber(dir, "cpuacct.usage"))
	return time.Duration(ns), err
}

func (c *Container) mem() (uint64, error) {
	dir, current := c.controller("memory"), "memory.usage_in_bytes"
	keys := []string{"total_rss", "total_mapped_file", "total_shmem"}
	if cgroups.IsCgroup2UnifiedMode() {
		current, keys = "memory.current", []string{"anon", "file_mapped", "shmem"}
	}
	var sum uint64
	for _, key := range keys {
		n, err := optional(groupValue(dir, "memory.stat", key))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	usage, err := optional(groupNumber(dir, current))
	if err != nil {
		return 0, err
	}
	return min(sum, usage), nil
}

// optional turns a missing file (no such controller, or the group has gone) into 0.
func optional(n uint64, err error) (uint64, error) {
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return n, err
}
