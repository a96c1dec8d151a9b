package engine

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// cpuPeriod is the scheduler's period of a lowered cpu limit, in microseconds.
const cpuPeriod = 100_000

func (n *narrowing) resources() error {
	l := n.policy.Limits()
	if n.spec.Linux.Resources == nil {
		n.spec.Linux.Resources = &specs.LinuxResources{}
	}
	r := n.spec.Linux.Resources
	if err := narrowResources(r, l); err != nil {
		return err
	}
	// What a device node leads to is decided here; libcontainer adds null, zero, full,
	// random, urandom, tty and terminals.
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	if len(n.spec.Linux.Devices) > 0 {
		n.spec.Linux.Devices = nil
		n.holds("devices", "the device cgroup: those of every container")
	}
	n.limits(r)
	return nil
}

// limits reports what holds them, in the form that narrowResources left.
func (n *narrowing) limits(r *specs.LinuxResources) {
	l := n.policy.Limits()
	n.holds("mem: "+size(l.Mem), "memory cgroup: %s", size(*r.Memory.Limit))
	n.holds(fmt.Sprintf("cpu: %g", l.CPU), "cpu cgroup: %g", float64(*r.CPU.Quota)/float64(*r.CPU.Period))
	n.holds(fmt.Sprintf("pids: %d", l.PIDs), "pids cgroup: %d", *r.Pids.Limit)
	n.clocks()
}

// Update returns what an update of the container's resources may change: r, with the
// limits of the policy where r is wider. What r leaves alone stays alone. What was asked
// for is noted in Given, so that a wider policy gives it back.
func (r *Record) Update(asked *specs.LinuxResources) (*specs.LinuxResources, error) {
	out, err := unlimited(asked)
	if err != nil {
		return nil, err
	}
	if out == nil {
		return nil, errors.New("there is nothing to update")
	}
	r.Given.add(out)
	l := r.Policy.Limits()
	// A limit that is not asked for (0 or missing) is in force already.
	if m := out.Memory; m != nil && m.Limit != nil && *m.Limit != 0 {
		narrowMemory(out, l)
	} else if m != nil {
		m.Limit, m.Swap, m.DisableOOMKiller = nil, nil, nil
	}
	if c := out.CPU; namesCPU(c) {
		c.Quota, c.Period = r.Given.CPU.Quota, r.Given.CPU.Period
		narrowCPU(out, l)
	} else if c != nil {
		c.Burst, c.RealtimeRuntime, c.RealtimePeriod = nil, nil, nil
	}
	if out.Pids != nil && out.Pids.Limit != nil && *out.Pids.Limit != 0 {
		narrowPIDs(out, l)
	} else {
		out.Pids = nil
	}
	out.Devices = nil
	return out, nil
}

func narrowResources(r *specs.LinuxResources, l policy.Limits) error {
	unified, err := narrowUnified(r, l)
	if err != nil {
		return err
	}
	r.Unified = unified
	narrowMemory(r, l)
	narrowCPU(r, l)
	narrowPIDs(r, l)
	return nil
}

func narrowPIDs(r *specs.LinuxResources, l policy.Limits) {
	limit := l.PIDs
	if r.Pids != nil {
		limit = smaller(r.Pids.Limit, limit)
	}
	r.Pids = &specs.LinuxPids{Limit: &limit}
}

// narrowMemory: swap counts with memory, a limit that can be passed by swapping is none.
func narrowMemory(r *specs.LinuxResources, l policy.Limits) {
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	m := r.Memory
	limit := smaller(m.Limit, l.Mem)
	swap := limit
	m.Limit, m.Swap = &limit, &swap
	if m.Reservation != nil && (*m.Reservation > limit || *m.Reservation < 0) {
		m.Reservation = &limit
	}
	// Without the killer a container out of memory hangs instead of ending.
	m.DisableOOMKiller = nil
}

// smaller is the smaller of a limit that may be missing (or 0 or less: none) and another.
func smaller(limit *int64, other int64) int64 {
	if limit != nil && *limit > 0 {
		return min(*limit, other)
	}
	return other
}

func narrowCPU(r *specs.LinuxResources, l policy.Limits) {
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	c := r.CPU
	period := uint64(cpuPeriod)
	if c.Period != nil && *c.Period > 0 {
		period = *c.Period
	}
	quota := int64(math.Round(l.CPU * float64(period)))
	if c.Quota != nil && *c.Quota > 0 && *c.Quota <= quota {
		quota = *c.Quota
	} else {
		// The engine's period may be too short for the policy's share of it.
		period = cpuPeriod
		quota = int64(math.Round(l.CPU * cpuPeriod))
	}
	c.Quota, c.Period = &quota, &period
	// Bursts and real time pass the quota.
	c.Burst, c.RealtimeRuntime, c.RealtimePeriod = nil, nil, nil
}

// narrowUnified moves the limits among the raw cgroup2 files to their fields, so that
// they are compared; the files would be written last, and win.
func narrowUnified(r *specs.LinuxResources, l policy.Limits) (map[string]string, error) {
	unified := maps.Clone(r.Unified)
	for _, file := range slices.Sorted(maps.Keys(unified)) {
		value := strings.TrimSpace(unified[file])
		switch file {
		case "memory.max":
			if r.Memory == nil {
				r.Memory = &specs.LinuxMemory{}
			}
			n, err := unifiedLimit(file, value)
			if err != nil {
				return nil, err
			}
			limit := smaller(r.Memory.Limit, smaller(&n, l.Mem))
			r.Memory.Limit = &limit
		case "pids.max":
			if r.Pids == nil {
				r.Pids = &specs.LinuxPids{}
			}
			n, err := unifiedLimit(file, value)
			if err != nil {
				return nil, err
			}
			limit := smaller(r.Pids.Limit, smaller(&n, l.PIDs))
			r.Pids.Limit = &limit
		case "cpu.max":
			if err := unifiedCPU(r, value); err != nil {
				return nil, err
			}
		case "memory.swap.max", "cpu.max.burst", "memory.oom.group":
			// no swap, no bursts, and the whole container ends: below
		default:
			if strings.HasPrefix(file, "cgroup.") || strings.Contains(file, "/") {
				return nil, fmt.Errorf("linux.resources.unified: %s is no limit: remove it", file)
			}
			continue
		}
		delete(unified, file)
	}
	if len(unified) == 0 {
		return nil, nil
	}
	return unified, nil
}

// unifiedLimit reads a number or "max", which is 0.
func unifiedLimit(file, value string) (int64, error) {
	if value == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("linux.resources.unified: %s %q: it is a number or max", file, value)
	}
	return n, nil
}

// unifiedCPU reads "QUOTA PERIOD" or "QUOTA"; the smaller share stays.
func unifiedCPU(r *specs.LinuxResources, value string) error {
	first, second, two := strings.Cut(value, " ")
	quota, err := unifiedLimit("cpu.max", first)
	period := int64(cpuPeriod)
	if err == nil && two {
		period, err = unifiedLimit("cpu.max", second)
	}
	if err != nil || period == 0 {
		return fmt.Errorf("linux.resources.unified: cpu.max %q: it is QUOTA PERIOD, in microseconds", value)
	}
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	c := r.CPU
	if quota == 0 {
		return nil
	}
	given := float64(cpuPeriod)
	if c.Period != nil && *c.Period > 0 {
		given = float64(*c.Period)
	}
	if c.Quota != nil && *c.Quota > 0 && float64(*c.Quota)/given <= float64(quota)/float64(period) {
		return nil
	}
	whole := uint64(period)
	c.Quota, c.Period = &quota, &whole
	return nil
}
