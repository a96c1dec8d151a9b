package confine

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Guard keeps the other processes of a container, which may have the same user, from
// tracing psi-init (by ptrace, /proc/PID/mem and the like) and having it do something
// else before the confinement is on. The kernel lets nobody trace a process that has a
// capability which the tracer lacks; so psi-init gets one that no container has, and
// CAP_SETPCAP with which to see to it that the program does not get either.
type Guard struct {
	// Where the program itself has CAP_SETPCAP.
	inherits, bounds, permits bool
}

// The capabilities of psi-init.
const (
	guardCapability = "CAP_BLOCK_SUSPEND"
	dropCapability  = "CAP_SETPCAP"
)

// NewGuard returns the guard for a program with these inheritable, bounding and
// permitted capabilities. Give psi-init all sets of [Guard.With].
func NewGuard(inheritable, bounding, permitted []string) *Guard {
	return &Guard{
		inherits: slices.Contains(inheritable, dropCapability),
		bounds:   slices.Contains(bounding, dropCapability),
		permits:  slices.Contains(permitted, dropCapability),
	}
}

// With returns a set of capabilities with those of psi-init.
func (*Guard) With(names []string) []string {
	out := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == guardCapability })
	if !slices.Contains(out, dropCapability) {
		out = append(out, dropCapability)
	}
	return append(out, guardCapability)
}

// bits are the capabilities to drop. The guard itself stays permitted until the exec,
// which takes away what is neither inheritable nor in the bounding set.
func (g *Guard) bits() (inheritable, bounding, permitted uint64) {
	inheritable, bounding = 1<<unix.CAP_BLOCK_SUSPEND, 1<<unix.CAP_BLOCK_SUSPEND
	if !g.inherits {
		inheritable |= 1 << unix.CAP_SETPCAP
	}
	if !g.bounds {
		bounding |= 1 << unix.CAP_SETPCAP
	}
	if !g.permits {
		permitted |= 1 << unix.CAP_SETPCAP
	}
	return inheritable, bounding, permitted
}
