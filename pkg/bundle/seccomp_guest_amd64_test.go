package bundle_test

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// Every forbidden call answers EPERM and every unknown one ENOSYS, seen from
// inside a guest, through libseccomp and the kernel.
func TestRuncSeccompCalls(t *testing.T) {
	numbers := systemCalls(t)
	minusOne := ^uint64(0)
	var calls []systemCall
	var decided []string
	for _, rule := range bundle.Seccomp().Syscalls {
		decided = append(decided, rule.Names...)
		if rule.Action != specs.ActErrno || len(rule.Args) > 0 {
			continue
		}
		for _, name := range rule.Names {
			// Debian's libseccomp does not know the newest calls: ENOSYS, as for all it does not know.
			if number, ok := numbers[name]; ok && number < 450 {
				calls = append(calls, systemCall{name, number, []uint64{minusOne, minusOne, minusOne}, "EPERM"})
			}
		}
	}
	if len(calls) < 90 {
		t.Errorf("only %d forbidden calls have a number", len(calls))
	}
	for name, number := range numbers {
		// The kernel lets uretprobe and uprobe past every filter (since 6.14), and
		// kills whoever makes them without a probe.
		if !slices.Contains(decided, name) && name != "uretprobe" && name != "uprobe" {
			calls = append(calls, systemCall{name, number, []uint64{minusOne}, "ENOSYS"})
		}
	}
	for _, number := range []int{337, 423, 472, 500, 548, 999, 1023, 1 << 20} {
		calls = append(calls, systemCall{"unknown", number, []uint64{}, "ENOSYS"})
	}
	makeCalls(t, calls)
}

func TestRuncSeccompArguments(t *testing.T) {
	const upper = 1 << 32
	eperm := func(name string, number int, args ...uint64) systemCall {
		return systemCall{name, number, args, "EPERM"}
	}
	errno := func(want, name string, number int, args ...uint64) systemCall {
		return systemCall{name, number, args, want}
	}
	calls := []systemCall{
		errno("0", "socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0),
		errno("0", "socket", unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP),
		errno("EINVAL", "socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|1<<30, 0),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 262),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 132),
		eperm("socket", unix.SYS_SOCKET, unix.AF_INET+upper, unix.SOCK_DGRAM, 0),
		eperm("socket", unix.SYS_SOCKET, unix.AF_UNIX+upper, unix.SOCK_STREAM, 0),
		errno("0", "socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, 0xdead0000),
		eperm("socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, 0xdead0000),
		eperm("socketpair", unix.SYS_SOCKETPAIR, unix.AF_TIPC, unix.SOCK_STREAM, 0, 0xdead0000),
		errno("EBADF", "ioctl", unix.SYS_IOCTL, 99, unix.TCGETS),
		errno("EBADF", "ioctl", unix.SYS_IOCTL, 99, unix.FICLONE),
		eperm("ioctl TIOCSTI", unix.SYS_IOCTL, 0, unix.TIOCSTI),
		eperm("ioctl TIOCLINUX", unix.SYS_IOCTL, 0, unix.TIOCLINUX),
		eperm("ioctl SIOCGIFCONF", unix.SYS_IOCTL, 0, 0x8912),
		errno("ENOSYS", "ioctl TIOCSTI", unix.SYS_IOCTL, 0, unix.TIOCSTI+upper),
		errno("EBADF", "fcntl", unix.SYS_FCNTL, 99, unix.F_SETFL),
		errno("EBADF", "fcntl", unix.SYS_FCNTL, 99, unix.F_ADD_SEALS),
		eperm("fcntl F_SETLEASE", unix.SYS_FCNTL, 0, unix.F_SETLEASE),
		eperm("fcntl F_NOTIFY", unix.SYS_FCNTL, 0, unix.F_NOTIFY),
		errno("ENOSYS", "fcntl F_SETLEASE", unix.SYS_FCNTL, 0, unix.F_SETLEASE+upper),
		errno("0", "prctl", unix.SYS_PRCTL, unix.PR_GET_DUMPABLE),
		eperm("prctl PR_SET_SECCOMP", unix.SYS_PRCTL, unix.PR_SET_SECCOMP),
		eperm("prctl PR_SET_MM", unix.SYS_PRCTL, unix.PR_SET_MM),
		eperm("prctl PR_SET_SYSCALL_USER_DISPATCH", unix.SYS_PRCTL, unix.PR_SET_SYSCALL_USER_DISPATCH),
		errno("0", "personality", unix.SYS_PERSONALITY, 0xffffffff),
		eperm("personality", unix.SYS_PERSONALITY, 0x40000),
		eperm("setsockopt SO_ATTACH_FILTER", unix.SYS_SETSOCKOPT, 0, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER),
		eperm("setsockopt TCP_ULP", unix.SYS_SETSOCKOPT, 0, unix.SOL_TCP, unix.TCP_ULP),
		eperm("setsockopt IPT_SO_SET_REPLACE", unix.SYS_SETSOCKOPT, 0, unix.SOL_IP, 64),
		errno("EBADF", "setsockopt TCP_NODELAY", unix.SYS_SETSOCKOPT, 99, unix.SOL_TCP, unix.TCP_NODELAY, 0, 4),
		errno("ENOSYS", "setsockopt", unix.SYS_SETSOCKOPT, 0, unix.SOL_NETLINK, 1),
	}
	for _, mode := range []uint64{0o4755, 0o2755, 0o6777} {
		calls = append(calls,
			eperm("chmod", unix.SYS_CHMOD, 0, mode), eperm("fchmod", unix.SYS_FCHMOD, 0, mode),
			eperm("fchmodat", unix.SYS_FCHMODAT, 0, 0, mode), eperm("creat", unix.SYS_CREAT, 0, mode),
			eperm("open", unix.SYS_OPEN, 0, unix.O_CREAT|unix.O_WRONLY, mode),
			eperm("openat", unix.SYS_OPENAT, 0, 0, unix.O_CREAT|unix.O_WRONLY, mode),
			eperm("openat", unix.SYS_OPENAT, 0, 0, unix.O_TMPFILE|unix.O_WRONLY, mode),
			errno("EFAULT", "openat", unix.SYS_OPENAT, 0, 0, unix.O_RDONLY, mode),
			errno("EFAULT", "chmod", unix.SYS_CHMOD, 0, mode&0o1777))
	}
	for domain := uint64(0); domain < 60; domain++ {
		if domain != unix.AF_INET && domain != unix.AF_INET6 {
			calls = append(calls, eperm("socket", unix.SYS_SOCKET, domain, unix.SOCK_STREAM, 0))
		}
	}
	for _, flag := range []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
		unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET} {
		calls = append(calls, eperm("clone", unix.SYS_CLONE, flag), eperm("clone", unix.SYS_CLONE, flag|unix.CLONE_NEWUSER|uint64(unix.SIGCHLD)))
	}
	// The pairs are written to an address that is not mapped.
	for i := range calls {
		if calls[i].name == "socketpair" && calls[i].want == "0" {
			calls[i].want = "EFAULT"
		}
	}
	makeCalls(t, calls)
}

// A call of another architecture ends its thread, whatever its number means there.
func TestRuncSeccompForeign(t *testing.T) {
	for name, code := range map[string]string{
		"int 0x80 (getpid)": "b814000000cd80c3",
		"x32 (getpid)":      "b8270000400f05c3",
	} {
		got := guest{script: guestScript(t, "foreign.py"), args: []string{code}}.run(t)
		if got.code == 0 || strings.Contains(got.stdout, "made") {
			t.Errorf("%s: guest ended with %d: %s%s", name, got.code, got.stdout, got.stderr)
		}
	}
	// The same code with a native number works.
	got := guest{script: guestScript(t, "foreign.py"), args: []string{"b8270000000f05c3"}}.run(t).ok(t)
	if got != "made 1" {
		t.Errorf("a native call: %q", got)
	}
}
