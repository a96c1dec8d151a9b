package engine

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Given is what an engine asked for of what policies limit, before that was narrowed: so
// a later, wider policy gives back what the engine gave, and no more. Nil and 0 are no
// limit. It is empty for a bundle of psi's own, until somebody updates it.
type Given struct {
	Memory specs.LinuxMemory  `json:"memory"` // limit and reservation
	CPU    specs.LinuxCPU     `json:"cpu"`    // quota and period
	Pids   specs.LinuxPids    `json:"pids"`
	NoFile *specs.POSIXRlimit `json:"nofile,omitempty"`
}

// givenBy is what a specification asks for.
func givenBy(spec *specs.Spec) (g Given, err error) {
	if spec.Linux != nil {
		r, err := unlimited(spec.Linux.Resources)
		if err != nil {
			return g, err
		}
		g.add(r)
	}
	at := slices.IndexFunc(spec.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" })
	if at >= 0 {
		limit := spec.Process.Rlimits[at]
		g.NoFile = &limit
	}
	return g, nil
}

// unlimited copies resources, with the limits among the raw cgroup2 files moved to their
// fields.
func unlimited(r *specs.LinuxResources) (*specs.LinuxResources, error) {
	spec, err := clone(&specs.Spec{Root: &specs.Root{}, Process: &specs.Process{}, Linux: &specs.Linux{Resources: r}})
	if err != nil || spec.Linux.Resources == nil {
		return nil, err
	}
	out := spec.Linux.Resources
	out.Unified, err = narrowUnified(out, policy.Limits{Mem: math.MaxInt64, PIDs: math.MaxInt64})
	return out, err
}

// add notes what r asks for; 0 or nothing leaves what there is.
func (g *Given) add(r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if m := r.Memory; m != nil {
		noteLimit(&g.Memory.Limit, m.Limit)
		noteLimit(&g.Memory.Reservation, m.Reservation)
	}
	if c := r.CPU; namesCPU(c) {
		if noteLimit(&g.CPU.Quota, c.Quota) {
			g.CPU.Period = nil
		}
		if c.Period != nil && *c.Period != 0 {
			g.CPU.Period = c.Period
		}
	}
	if r.Pids != nil {
		noteLimit(&g.Pids.Limit, r.Pids.Limit)
	}
}

// namesCPU reports whether the cpu limit is asked to change.
func namesCPU(c *specs.LinuxCPU) bool {
	return c != nil && (c.Quota != nil && *c.Quota != 0 || c.Period != nil && *c.Period != 0)
}

func noteLimit(into **int64, limit *int64) bool {
	if limit == nil || *limit == 0 {
		return false
	}
	noted := *limit
	*into = &noted
	return true
}

// Resources are what a container has of what was given, under these limits.
func (g Given) Resources(l policy.Limits) *specs.LinuxResources {
	memory, cpu, pids := g.Memory, g.CPU, g.Pids
	r := &specs.LinuxResources{Memory: &memory, CPU: &cpu, Pids: &pids}
	narrowMemory(r, l)
	narrowCPU(r, l)
	narrowPIDs(r, l)
	return r
}

// OpenFiles is the RLIMIT_NOFILE that a container's processes have of what was given, if
// they have not chosen less, under these limits.
func (g Given) OpenFiles(l policy.Limits) specs.POSIXRlimit {
	limit := specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: uint64(l.OpenFiles), Soft: uint64(l.OpenFiles)}
	if g.NoFile != nil {
		limit.Hard = min(limit.Hard, g.NoFile.Hard)
		limit.Soft = min(limit.Hard, g.NoFile.Soft)
	}
	return limit
}
