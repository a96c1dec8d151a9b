package bundle

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// matchesArg is what the kernel does with one comparison.
func matchesArg(a specs.LinuxSeccompArg, args [6]uint64) bool {
	v := args[a.Index]
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	}
	panic("operator " + a.Op)
}

// decisions returns the action of every rule that matches.
func decisions(s *specs.LinuxSeccomp, call string, args [6]uint64) []specs.LinuxSeccompAction {
	var out []specs.LinuxSeccompAction
	for _, rule := range s.Syscalls {
		if !slices.Contains(rule.Names, call) {
			continue
		}
		all := true
		for _, a := range rule.Args {
			all = all && matchesArg(a, args)
		}
		if all {
			out = append(out, rule.Action)
		}
	}
	return out
}

func TestSeccompArguments(t *testing.T) {
	const upper = 1 << 32 // the half of a register that the kernel ignores in an int
	tests := []struct {
		call string
		args [6]uint64
		want specs.LinuxSeccompAction // "" where no rule matches: ENOSYS
	}{
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM}, specs.ActAllow},
		{"socket", [6]uint64{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, specs.ActAllow},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_DGRAM}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_RAW}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_SEQPACKET}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, 262}, specs.ActErrno}, // MPTCP
		{"socket", [6]uint64{unix.AF_INET, unix.SOCK_STREAM, 132}, specs.ActErrno}, // SCTP
		{"socket", [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_UNIX + upper, unix.SOCK_STREAM}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_INET + upper, unix.SOCK_STREAM}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, specs.ActErrno},
		{"socket", [6]uint64{unix.AF_SMC, unix.SOCK_STREAM}, specs.ActErrno},
		{"socketpair", [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, specs.ActAllow},
		{"socketpair", [6]uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET}, specs.ActAllow},
		{"socketpair", [6]uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, specs.ActErrno},
		{"socketpair", [6]uint64{unix.AF_TIPC, unix.SOCK_STREAM}, specs.ActErrno},
		{"chmod", [6]uint64{0, 0o1777}, specs.ActAllow},
		{"chmod", [6]uint64{0, 0o4755}, specs.ActErrno},
		{"fchmod", [6]uint64{0, 0o2755}, specs.ActErrno},
		{"fchmodat", [6]uint64{0, 0, 0o6000}, specs.ActErrno},
		{"fchmodat", [6]uint64{0, 0, 0o4755 + upper}, specs.ActErrno},
		{"fchmodat2", [6]uint64{0, 0, 0o755}, specs.ActAllow},
		{"creat", [6]uint64{0, 0o4755}, specs.ActErrno},
		{"open", [6]uint64{0, unix.O_CREAT | unix.O_RDWR, 0o666}, specs.ActAllow},
		{"open", [6]uint64{0, unix.O_CREAT | unix.O_RDWR, 0o4666}, specs.ActErrno},
		{"openat", [6]uint64{0, 0, unix.O_RDONLY, 0xffff}, specs.ActAllow},
		{"openat", [6]uint64{0, 0, unix.O_DIRECTORY, 0xffff}, specs.ActAllow},
		{"openat", [6]uint64{0, 0, unix.O_CREAT, 0o2777}, specs.ActErrno},
		{"openat", [6]uint64{0, 0, unix.O_TMPFILE | unix.O_RDWR, 0o4777}, specs.ActErrno},
		{"openat", [6]uint64{0, 0, unix.O_TMPFILE | unix.O_RDWR, 0o600}, specs.ActAllow},
		{"clone", [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, specs.ActAllow},
		{"clone", [6]uint64{uint64(unix.SIGCHLD)}, specs.ActAllow},
		{"clone", [6]uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, specs.ActErrno},
		{"clone", [6]uint64{unix.CLONE_NEWNS}, specs.ActErrno},
		{"clone", [6]uint64{unix.CLONE_NEWCGROUP}, specs.ActErrno},
		{"ioctl", [6]uint64{1, unix.TCGETS}, specs.ActAllow},
		{"ioctl", [6]uint64{1, unix.FICLONE}, specs.ActAllow},
		{"ioctl", [6]uint64{1, unix.TIOCSTI}, specs.ActErrno},
		{"ioctl", [6]uint64{1, unix.TIOCSTI + upper}, ""},
		{"ioctl", [6]uint64{1, unix.TIOCLINUX}, specs.ActErrno},
		{"ioctl", [6]uint64{1, unix.TIOCLINUX + upper}, ""},
		{"ioctl", [6]uint64{1, 0}, ""},
		{"ioctl", [6]uint64{1, 0x8912}, specs.ActErrno}, // SIOCGIFCONF
		{"prctl", [6]uint64{unix.PR_SET_SYSCALL_USER_DISPATCH}, specs.ActErrno},
		{"fcntl", [6]uint64{1, unix.F_SETFL}, specs.ActAllow},
		{"fcntl", [6]uint64{1, unix.F_SETOWN}, specs.ActAllow},
		{"fcntl", [6]uint64{1, unix.F_DUPFD_CLOEXEC}, specs.ActAllow},
		{"fcntl", [6]uint64{1, unix.F_ADD_SEALS}, specs.ActAllow},
		{"fcntl", [6]uint64{1, unix.F_SETLEASE}, specs.ActErrno},
		{"fcntl", [6]uint64{1, unix.F_NOTIFY}, specs.ActErrno},
		{"fcntl", [6]uint64{1, unix.F_SETLEASE + upper}, ""},
		{"prctl", [6]uint64{unix.PR_SET_NAME}, specs.ActAllow},
		{"prctl", [6]uint64{unix.PR_SET_VMA}, specs.ActAllow},
		{"prctl", [6]uint64{unix.PR_SET_SECCOMP}, specs.ActErrno},
		{"prctl", [6]uint64{unix.PR_SET_MM}, specs.ActErrno},
		{"prctl", [6]uint64{unix.PR_CAP_AMBIENT}, specs.ActErrno},
		{"prctl", [6]uint64{unix.PR_SET_MM + upper}, ""},
		{"personality", [6]uint64{0xffffffff}, specs.ActAllow},
		{"personality", [6]uint64{0x40000}, specs.ActErrno}, // ADDR_NO_RANDOMIZE
		{"personality", [6]uint64{0}, specs.ActErrno},
		{"setsockopt", [6]uint64{3, unix.SOL_TCP, unix.TCP_NODELAY}, specs.ActAllow},
		{"setsockopt", [6]uint64{3, unix.SOL_SOCKET, unix.SO_REUSEADDR}, specs.ActAllow},
		{"setsockopt", [6]uint64{3, unix.SOL_SOCKET, unix.SO_RCVTIMEO}, specs.ActAllow},
		{"setsockopt", [6]uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER}, specs.ActErrno},
		{"setsockopt", [6]uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER + upper}, ""},
		{"setsockopt", [6]uint64{3, unix.SOL_TCP, unix.TCP_ULP}, specs.ActErrno},
		{"setsockopt", [6]uint64{3, unix.SOL_TCP + upper, unix.TCP_ULP}, ""},
		{"setsockopt", [6]uint64{3, unix.SOL_IP, 64}, specs.ActErrno}, // IPT_SO_SET_REPLACE
		{"setsockopt", [6]uint64{3, unix.SOL_NETLINK, 1}, ""},
	}
	s := Seccomp()
	for _, tt := range tests {
		got := slices.Compact(decisions(s, tt.call, tt.args))
		if len(got) > 1 || len(got) == 1 && got[0] != tt.want || len(got) == 0 && tt.want != "" {
			t.Errorf("%s%v: rules say %v, want %q", tt.call, tt.args, got, tt.want)
		}
	}
}

// Whatever the arguments are, no call is allowed by one rule and forbidden by
// another: which of the two libseccomp would take is nobody's promise.
func TestSeccompRulesAgree(t *testing.T) {
	s := Seccomp()
	filtered := map[string]bool{}
	interesting := []uint64{0, 1, 2, 5, 10, 16, 17, 36, 1<<32 - 1, 1 << 32, 1 << 63, 1<<64 - 1}
	for _, rule := range s.Syscalls {
		if len(rule.Args) == 0 {
			continue
		}
		filtered[rule.Names[0]] = true
		for _, a := range rule.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				interesting = append(interesting, v-1, v, v+1, v|1<<32)
			}
		}
	}
	if len(filtered) != 15 {
		t.Errorf("%d calls have argument rules, want 15: %v", len(filtered), filtered)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for call := range filtered {
		for range 20_000 {
			var args [6]uint64
			for i := range args {
				switch random.IntN(3) {
				case 0:
					args[i] = random.Uint64() >> random.IntN(64)
				case 1:
					args[i] = uint64(random.IntN(100))
				default:
					args[i] = interesting[random.IntN(len(interesting))]
				}
			}
			got := decisions(s, call, args)
			if slices.Contains(got, specs.ActAllow) && slices.Contains(got, specs.ActErrno) {
				t.Fatalf("%s%x: rules say %v", call, args, got)
			}
		}
	}
}

func TestBlocks(t *testing.T) {
	for _, s := range []span{{0, 0}, {0, 1}, {1, 1}, {3, 9}, {0, 255}, {17, 35}, {1, 254}} {
		for v := uint64(0); v < 600; v++ {
			n := 0
			for _, b := range blocks(s) {
				if v&b.mask == b.value {
					n++
				}
			}
			want := 0
			if s.low <= v && v <= s.high {
				want = 1
			}
			if n != want {
				t.Errorf("blocks of %v hold %d %d times, want %d", s, v, n, want)
			}
		}
	}
	if got := blocks(span{1 << 63, 1<<64 - 1}); len(got) != 1 {
		t.Errorf("upper half is %v", got)
	}
}

// Each type of a pair is allowed or refused, whatever flags come with it, and datagrams are
// allowed in the filter for them alone. (Type 3, SOCK_RAW, is datagrams by another name.)
func TestSeccompOfPairs(t *testing.T) {
	for name, filter := range SeccompVariants() {
		for kind := range uint64(16) {
			want := specs.ActErrno
			if kind == unix.SOCK_STREAM || kind == unix.SOCK_SEQPACKET || kind == unix.SOCK_DGRAM && strings.HasSuffix(name, "-pairs") {
				want = specs.ActAllow
			}
			for _, flags := range []uint64{0, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK, 1 << 32} {
				got := slices.Compact(decisions(filter, "socketpair", [6]uint64{unix.AF_UNIX, kind | flags}))
				if !slices.Equal(got, []specs.LinuxSeccompAction{want}) {
					t.Errorf("%s: a pair of type %#x is %v, want %s", name, kind|flags, got, want)
				}
			}
			if got := decisions(filter, "socketpair", [6]uint64{unix.AF_TIPC, kind}); slices.Contains(got, specs.ActAllow) {
				t.Errorf("%s: a pair of another family is allowed", name)
			}
		}
	}
}

// No call stands in both tables or twice in one, and the filter is made anew.
func TestSeccompTables(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range append(names(allowedCalls()), names(forbiddenCalls())...) {
		if seen[name] {
			t.Errorf("%s is listed twice", name)
		}
		seen[name] = true
	}
	for _, rule := range Seccomp().Syscalls {
		if len(rule.Args) > 0 && seen[rule.Names[0]] {
			t.Errorf("%s has argument rules, and one without arguments that overrides them", rule.Names[0])
		}
	}
	first, second := Seccomp(), Seccomp()
	if !reflect.DeepEqual(first, second) {
		t.Error("two filters differ")
	}
	first.Syscalls[0].Names[0] = "changed"
	if Seccomp().Syscalls[0].Names[0] == "changed" {
		t.Error("a caller can change the filter of the next one")
	}
}

// A guest may bind and listen only if its policy exposes a port, and make datagram sockets
// only if it has an udp rule.
func TestSeccompOfPolicies(t *testing.T) {
	with := func(change func(policy.Policy) (policy.Policy, error)) *specs.LinuxSeccomp {
		p, err := change(policy.Defaults())
		if err != nil {
			t.Fatal(err)
		}
		return seccomp(socketsOf(p))
	}
	exposing := with(func(p policy.Policy) (policy.Policy, error) { return p.ExposePort(8000) })
	sending := with(func(p policy.Policy) (policy.Policy, error) { return p.AllowUDP("192.0.2.1:53") })
	datagram := [6]uint64{unix.AF_INET, unix.SOCK_DGRAM}
	for _, test := range []struct {
		name           string
		filter         *specs.LinuxSeccomp
		listen, create specs.LinuxSeccompAction
	}{
		{"default", Seccomp(), specs.ActErrno, specs.ActErrno},
		{"expose", exposing, specs.ActAllow, specs.ActErrno},
		{"udp", sending, specs.ActErrno, specs.ActAllow},
	} {
		for _, call := range []string{"bind", "listen"} {
			if got := decisions(test.filter, call, [6]uint64{}); !slices.Equal(got, []specs.LinuxSeccompAction{test.listen}) {
				t.Errorf("%s: %s is %v", test.name, call, got)
			}
		}
		if got := decisions(test.filter, "socket", datagram); !slices.Contains(got, test.create) || len(got) > 1 && test.create == specs.ActAllow {
			t.Errorf("%s: a datagram socket is %v", test.name, got)
		}
	}
}
