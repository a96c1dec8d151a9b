package engine

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// The filters that psi-init knows by name.
const (
	Hold        = "hold"         // see HoldFilter
	Python      = "python"       // CPython's list, bundle.Seccomp
	PythonPairs = "python-pairs" // with pairs of datagram sockets, see Made.Pairs
)

func filter(name string) (*specs.LinuxSeccomp, error) {
	switch name {
	case Hold:
		return HoldFilter(), nil
	case Python:
		return bundle.Seccomp(), nil
	case PythonPairs:
		return bundle.SeccompWithPairs(policy.Policy{}), nil
	}
	return nil, fmt.Errorf("there is no seccomp filter %q", name)
}

// families of sockets that a container may make: unix, IPv4, IPv6 and netlink. The
// eBPF programs hold IPv4 and IPv6; the others of the kernel's forty (AF_VSOCK, which
// leads to the hypervisor, AF_PACKET …) are held by nobody.
func families() []uint64 {
	return []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}
}

// lastFamily is above all families that the kernel has.
const lastFamily = 64

// ways lists the system calls by which a process without capabilities might leave its
// policy: new namespaces, in which it would have all of them, mounts, file handles,
// kernel keys, and programs in the kernel.
func ways() []string {
	return []string{"unshare", "setns", "mount", "umount2", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
		"mount_setattr", "pivot_root", "open_by_handle_at", "bpf", "perf_event_open", "keyctl", "add_key", "request_key"}
}

// HoldFilter denies what a policy cannot let an engine's container do, and allows
// everything else.
func HoldFilter() *specs.LinuxSeccomp {
	unknown := uint(unix.ENOSYS)
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{nativeArch()}}
	deny := func(errno *uint, names []string, args ...specs.LinuxSeccompArg) {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: errno, Args: args})
	}
	deny(nil, ways())
	deny(&unknown, []string{"clone3"}) // its flags are in memory; C libraries fall back to clone
	for _, flag := range namespaceFlags() {
		deny(nil, []string{"clone"}, specs.LinuxSeccompArg{Index: 0, Op: specs.OpMaskedEqual, Value: flag, ValueTwo: flag})
	}
	for family := range uint64(lastFamily) {
		if !slices.Contains(families(), family) {
			deny(nil, []string{"socket"}, specs.LinuxSeccompArg{Index: 0, Op: specs.OpEqualTo, Value: family})
		}
	}
	deny(nil, []string{"socket"}, specs.LinuxSeccompArg{Index: 0, Op: specs.OpGreaterEqual, Value: lastFamily})
	return s
}

func namespaceFlags() []uint64 {
	return []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET}
}

func nativeArch() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

// calls narrows what system calls the container has.
func (n *narrowing) calls() error {
	if s := n.spec.Linux.Seccomp; s != nil && len(s.Architectures) > 0 {
		// Foreign calls have other numbers, and some have their arguments in memory.
		s.Architectures = []specs.Arch{nativeArch()}
	}
	switch {
	case n.policy.Seccomp() == policy.SeccompPython:
		n.python()
	case n.spec.Linux.Seccomp == nil:
		n.spec.Linux.Seccomp = HoldFilter()
		n.holds("ways out", "seccomp filter of psi")
	case holds(n.spec.Linux.Seccomp):
		n.holds("ways out", "seccomp filter of the engine")
	default:
		n.out.Confine.Filters = []string{Hold}
		n.holds("ways out", "seccomp filter of psi, by psi-init")
	}
	return n.psiInit()
}

// python puts CPython's list on the container.
func (n *narrowing) python() {
	n.out.Confine.Filters = []string{Python}
	n.holds("seccomp: python", "seccomp filter, by psi-init")
	if n.host.Pairs != nil {
		n.out.Pairs = n.host.Pairs()
	}
	if n.out.Pairs != "" {
		n.out.Confine.Filters = []string{PythonPairs}
	}
	n.out.Files.Needed = n.out.Files.Needed || n.out.Pairs == PairsByLSM
	n.holdsPairs(n.out.Pairs)
}

// psiInit makes sure that the container's own filter lets psi-init work.
func (n *narrowing) psiInit() error {
	if n.out.Confine.None() {
		return nil
	}
	if n.spec.Process.ApparmorProfile != "" || n.spec.Process.SelinuxLabel != "" {
		n.holds("security label", "the engine's; psi-init runs under it too")
	}
	c := confine.Confinement{Filters: make([][]byte, len(n.out.Confine.Filters)), Domain: n.out.Confine.Domain}
	for _, call := range c.Calls() {
		if decide(n.spec.Linux.Seccomp, call, nil) == denied {
			return fmt.Errorf("the container's seccomp profile denies %s, which psi-init needs to put %s on: allow it in the profile", call, what(n.out.Confine))
		}
	}
	if !slices.ContainsFunc(n.spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/proc" && m.Type == "proc" }) {
		return errors.New("psi-init is started through /proc/self/fd, and the container has no /proc: mount proc there")
	}
	return nil
}

func what(c Confine) string {
	if c.Domain != nil {
		return "a Landlock domain"
	}
	return "the seccomp filter " + c.Filters[0]
}

// holds reports whether a filter denies all ways out for certain.
func holds(s *specs.LinuxSeccomp) bool {
	for _, name := range append(ways(), "clone3") {
		if decide(s, name, nil) != denied {
			return false
		}
	}
	for _, flag := range namespaceFlags() {
		if decide(s, "clone", &flag) != denied {
			return false
		}
	}
	for family := range uint64(lastFamily) {
		if family != unix.AF_UNSPEC && !slices.Contains(families(), family) && decide(s, "socket", &family) != denied {
			return false
		}
	}
	return true
}

// verdict is what a filter says to a call, as far as it can be told from outside.
type verdict int

const (
	allowed verdict = iota
	denied
	unsure
)

// decide tells what the filter does with a call whose first argument is first, or is
// not known. Rules without conditions win over those with, as in libseccomp.
func decide(s *specs.LinuxSeccomp, call string, first *uint64) verdict {
	if s == nil {
		return allowed
	}
	certain, possible := map[verdict]bool{}, map[verdict]bool{}
	for _, rule := range s.Syscalls {
		if !slices.Contains(rule.Names, call) {
			continue
		}
		switch matches(rule.Args, first) {
		case allowed: // the rule is about this call
			certain[verdictOf(rule.Action)] = true
		case unsure:
			possible[verdictOf(rule.Action)] = true
		}
	}
	if len(certain) == 0 {
		certain[verdictOf(s.DefaultAction)] = true
	}
	maps.Copy(possible, certain)
	switch {
	case len(possible) > 1:
		return unsure
	case possible[allowed]:
		return allowed
	}
	return denied
}

func verdictOf(a specs.LinuxSeccompAction) verdict {
	switch a {
	case specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap:
		return denied
	}
	return allowed
}

// matches: allowed is yes, denied is no.
func matches(args []specs.LinuxSeccompArg, first *uint64) verdict {
	out := allowed
	for _, arg := range args {
		if arg.Index != 0 || first == nil {
			out = unsure
			continue
		}
		if !compares(arg, *first) {
			return denied
		}
	}
	return out
}

func compares(arg specs.LinuxSeccompArg, value uint64) bool {
	switch arg.Op {
	case specs.OpNotEqual:
		return value != arg.Value
	case specs.OpLessThan:
		return value < arg.Value
	case specs.OpLessEqual:
		return value <= arg.Value
	case specs.OpEqualTo:
		return value == arg.Value
	case specs.OpGreaterEqual:
		return value >= arg.Value
	case specs.OpGreaterThan:
		return value > arg.Value
	case specs.OpMaskedEqual:
		return value&arg.Value == arg.ValueTwo
	}
	return true
}
