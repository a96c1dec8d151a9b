package bridge

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// figures are what a container uses.
type figures struct {
	cpu      time.Duration
	mem      uint64 // bytes: anonymous memory, mapped files, shared memory
	pids     uint64
	oomKills uint64
}

// groups are the directories of a container's cgroups, by controller; "" is cgroup2's.
type groups map[string]string

// groupsOf finds the cgroups of a process, and refuses if they are not those of the
// container id: an engine in a virtual machine or another namespace names processes that
// are others here.
func groupsOf(pid int, id string) (groups, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("finding the cgroups of container %.12s: %w", id, err)
	}
	if !strings.Contains(string(data), id) {
		return nil, fmt.Errorf("process %d is not in a cgroup of container %.12s: does the engine run on another machine, or without cgroups?", pid, id)
	}
	mounts, err := groupMounts()
	if err != nil {
		return nil, err
	}
	found := make(groups)
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, controller := range strings.Split(fields[1], ",") {
			m, ok := mounts[controller]
			if below, inside := strings.CutPrefix(fields[2], strings.TrimSuffix(m.root, "/")); ok && inside {
				found[controller] = filepath.Join(m.point, below)
			}
		}
	}
	return found, nil
}

type groupMount struct{ root, point string }

// groupMounts lists where each controller is mounted.
func groupMounts() (map[string]groupMount, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	defer file.Close()
	found := make(map[string]groupMount)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		left, right, _ := strings.Cut(lines.Text(), " - ")
		where, what := strings.Fields(left), strings.Fields(right)
		if len(where) < 5 || len(what) < 3 {
			continue
		}
		m := groupMount{where[3], where[4]}
		switch what[0] {
		case "cgroup2":
			if _, again := found[""]; !again {
				found[""] = m
			}
		case "cgroup":
			for _, option := range strings.Split(what[2], ",") {
				if _, again := found[option]; !again {
					found[option] = m
				}
			}
		}
	}
	return found, lines.Err()
}

// read reads the figures. A controller that the host has not is 0.
func (g groups) read() (figures, error) {
	var f figures
	var errs []error
	number := func(controller, file, key string) uint64 {
		n, err := value(filepath.Join(g[controller], file), key)
		if err != nil {
			errs = append(errs, err)
		}
		return n
	}
	if _, v1 := g["cpuacct"]; v1 {
		f.cpu = time.Duration(number("cpuacct", "cpuacct.usage", ""))
	} else {
		f.cpu = time.Duration(number("", "cpu.stat", "usage_usec")) * time.Microsecond
	}
	if _, v1 := g["memory"]; v1 {
		sum := number("memory", "memory.stat", "total_rss") + number("memory", "memory.stat", "total_mapped_file") + number("memory", "memory.stat", "total_shmem")
		f.mem = min(sum, number("memory", "memory.usage_in_bytes", ""))
		f.oomKills = number("memory", "memory.oom_control", "oom_kill")
	} else {
		sum := number("", "memory.stat", "anon") + number("", "memory.stat", "file_mapped") + number("", "memory.stat", "shmem")
		f.mem = min(sum, number("", "memory.current", ""))
		f.oomKills = number("", "memory.events", "oom_kill")
	}
	if _, v1 := g["pids"]; v1 {
		f.pids = number("pids", "pids.current", "")
	} else {
		f.pids = number("", "pids.current", "")
	}
	return f, errors.Join(errs...)
}

// value reads a file that holds one number (key ""), or the number of a key.
func value(path, key string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading cgroup: %w", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if key == "" && len(fields) == 1 || len(fields) == 2 && fields[0] == key {
			n, err := strconv.ParseUint(fields[len(fields)-1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading cgroup file %s: %w", path, err)
			}
			return n, nil
		}
	}
	return 0, nil // an older kernel without this line
}
