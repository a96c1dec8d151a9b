package engine

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// strict is a profile such as Docker's: a list of what is allowed.
func strict(more ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
		Syscalls: append([]specs.LinuxSyscall{
			{Names: []string{"mmap", "close", "prctl", "seccomp", "capget", "capset", "execve", "read", "openat", "statx", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}, Action: specs.ActAllow},
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: 0x7e020000, ValueTwo: 0}}},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpLessEqual, Value: unix.AF_INET}}},
		}, more...),
	}
}

func TestDecide(t *testing.T) {
	value := func(v uint64) *uint64 { return &v }
	s := strict(specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno},
		specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: 1}}})
	for _, tc := range []struct {
		call  string
		first *uint64
		want  verdict
	}{
		{"read", nil, allowed}, {"mount", nil, denied}, {"clone3", nil, denied}, {"ioctl", nil, unsure}, {"ioctl", value(3), unsure},
		{"clone", nil, unsure}, {"clone", value(unix.CLONE_NEWUSER), denied}, {"clone", value(unix.CLONE_VM), allowed},
		{"socket", value(unix.AF_INET), allowed}, {"socket", value(unix.AF_VSOCK), denied},
	} {
		if got := decide(s, tc.call, tc.first); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.call, got, tc.want)
		}
	}
	if decide(nil, "mount", nil) != allowed {
		t.Error("no filter denies nothing")
	}
	both := strict(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno})
	if decide(both, "read", nil) != unsure {
		t.Error("allowed and denied")
	}
}

func TestWhichFilter(t *testing.T) {
	clone3 := specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno}
	for name, tc := range map[string]struct {
		seccomp  *specs.LinuxSeccomp
		document string
		filters  []string
	}{
		"none":              {nil, "{}", nil},
		"a strict one":      {strict(clone3), "{}", nil},
		"one with mounts":   {strict(clone3, specs.LinuxSyscall{Names: []string{"mount"}, Action: specs.ActAllow}), "{}", []string{Hold}},
		"notify is allowed": {strict(clone3, specs.LinuxSyscall{Names: []string{"bpf"}, Action: specs.ActNotify}), "{}", []string{Hold}},
		"allows all":        {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "{}", []string{Hold}},
		"any socket":        {strict(clone3, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow}), "{}", []string{Hold}},
		"logs":              {&specs.LinuxSeccomp{DefaultAction: specs.ActLog}, "{}", []string{Hold}},
		"python":            {nil, "seccomp: python", []string{Python}},
		"python and strict": {strict(clone3), "seccomp: python", []string{Python}},
	} {
		n := narrow(t, engineSpec(func(s *specs.Spec) { s.Linux.Seccomp = tc.seccomp }), parse(t, tc.document))
		if !slices.Equal(n.Confine.Filters, tc.filters) {
			t.Errorf("%s: %q", name, n.Confine.Filters)
		}
		if tc.seccomp == nil && tc.filters == nil && (n.Spec.Linux.Seccomp == nil || !holds(n.Spec.Linux.Seccomp)) {
			t.Errorf("%s: the way out is open", name)
		}
		if s := n.Spec.Linux.Seccomp; s != nil && len(s.Architectures) > 0 && !slices.Equal(s.Architectures, []specs.Arch{nativeArch()}) {
			t.Errorf("%s: %v", name, s.Architectures)
		}
		c, err := n.Confine.Confinement()
		if err != nil || len(c.Filters) != len(tc.filters) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Confine{Filters: []string{"x"}}).Confinement(); err == nil {
		t.Error("an unknown filter")
	}
}

// Both of psi's filters close the ways out, by the same judgement as an engine's.
func TestOwnFiltersHold(t *testing.T) {
	if !holds(HoldFilter()) {
		t.Error("Hold")
	}
	if !holds(bundle.Seccomp()) {
		t.Error("Python")
	}
	for _, call := range []string{"read", "execve", "socketpair", "ptrace", "io_uring_setup", "fork"} {
		if decide(HoldFilter(), call, nil) != allowed {
			t.Errorf("%s is denied", call)
		}
	}
}
