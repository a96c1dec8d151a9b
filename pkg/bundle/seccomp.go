package bundle

import (
	"runtime"
	"sort"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Seccomp returns the system call filter of a guest: the calls that CPython and
// its libraries use are allowed, the named dangerous ones answer EPERM, and
// everything else, newer kernels' calls included, answers ENOSYS, which every C
// library takes for an older kernel. A call of a foreign architecture (32 bit, x32)
// kills its thread. The result depends on nothing but the architecture of the
// build; it is made anew at each call, the caller may change it.
func Seccomp() *specs.LinuxSeccomp { return seccomp(sockets{}) }

// SeccompOf returns the filter that [Compile] gives a guest with this policy.
func SeccompOf(p policy.Policy) *specs.LinuxSeccomp { return seccomp(socketsOf(p)) }

// SeccompWithPairs returns the filter of a guest with this policy that may also make pairs
// of datagram sockets. Whoever gives a guest this one has to decide where an end of such a
// pair connects and sends to: a system call filter sees no address. [Compile] knows nothing
// of the host on which its bundle will run, and so lets none be made; psi-runtime puts
// this one in its place, where it can.
func SeccompWithPairs(p policy.Policy) *specs.LinuxSeccomp {
	may := socketsOf(p)
	may.pairs = true
	return seccomp(may)
}

// SeccompVariants returns the filters of all policies, by names of what they are for.
func SeccompVariants() map[string]*specs.LinuxSeccomp {
	variants := make(map[string]*specs.LinuxSeccomp)
	for name, may := range map[string]sockets{"plain": {}, "udp": {udp: true}, "expose": {listen: true}, "udp-expose": {udp: true, listen: true}} {
		variants[name] = seccomp(may)
		may.pairs = true
		variants[name+"-pairs"] = seccomp(may)
	}
	return variants
}

// sockets is what of the filter depends on the policy, and on the host.
type sockets struct {
	pairs  bool // of datagrams, where somebody decides where they lead
	udp    bool // datagrams, for a policy with udp rules
	listen bool // bind and listen, for one that exposes ports
}

func socketsOf(p policy.Policy) sockets {
	return sockets{udp: len(p.UDP()) > 0, listen: len(p.Expose()) > 0}
}

// seccomp is Seccomp for a policy that needs these sockets.
func seccomp(may sockets) *specs.LinuxSeccomp {
	unknown := uint(unix.ENOSYS)
	allowed, forbidden := allowedCalls(), forbiddenCalls()
	if may.listen {
		allowed = append(allowed, servingCalls())
	} else {
		forbidden = append(forbidden, servingCalls())
	}
	s := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &unknown,
		Architectures:   []specs.Arch{nativeArch()},
		Syscalls: []specs.LinuxSyscall{
			{Names: names(allowed), Action: specs.ActAllow},
			forbid(names(forbidden)),
		},
	}
	for _, c := range singleArguments() {
		s.Syscalls = append(s.Syscalls, c.rules()...)
	}
	s.Syscalls = append(s.Syscalls, modeRules()...)
	s.Syscalls = append(s.Syscalls, cloneRules()...)
	s.Syscalls = append(s.Syscalls, socketRules(may.udp)...)
	s.Syscalls = append(s.Syscalls, socketpairRules(may.pairs)...)
	s.Syscalls = append(s.Syscalls, setsockoptRules()...)
	return s
}

// Requests of ioctl on any descriptor (asm-generic/ioctls.h); FIOCLEX lies between
// the last two.
const (
	fionbio  = 0x5421
	fionclex = 0x5450
	fioasync = 0x5452
)

func nativeArch() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

func names(table []calls) []string {
	var out []string
	for _, row := range table {
		out = append(out, row.names...)
	}
	sort.Strings(out)
	return out
}

// allow makes the rule that allows call if all arguments compare.
func allow(call string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{call}, Action: specs.ActAllow, Args: args}
}

// forbid makes the rule that answers EPERM to the calls if all arguments compare.
func forbid(calls []string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	errno := uint(unix.EPERM)
	return specs.LinuxSyscall{Names: calls, Action: specs.ActErrno, ErrnoRet: &errno, Args: args}
}

// argument allows a call for some values of one argument and forbids it for
// others; the rest is ENOSYS. What is forbidden has to be spelled out, because
// libseccomp lets a rule without arguments override the ones with. Every rule
// costs a guest's start some 15 µs, so the spans are as wide as is harmless.
type argument struct {
	call               string
	index              uint
	allowed, forbidden []span // disjoint
}

func (a argument) rules() []specs.LinuxSyscall {
	var out []specs.LinuxSyscall
	for _, arg := range within(a.index, a.allowed) {
		out = append(out, allow(a.call, arg))
	}
	for _, arg := range within(a.index, a.forbidden) {
		out = append(out, forbid([]string{a.call}, arg))
	}
	return out
}

// singleArguments are the calls that one argument decides.
func singleArguments() []argument {
	return []argument{
		{
			call: "fcntl", index: 1,
			allowed: []span{ // descriptors, flags, owners, signals; pipe sizes, seals
				{unix.F_DUPFD, unix.F_GETLK},
				{unix.F_SETOWN, unix.F_GETOWN_EX},
				only(unix.F_OFD_GETLK),
				{unix.F_DUPFD_CLOEXEC, unix.F_GET_SEALS},
			},
			// Locks of byte ranges: the kernel keeps as many as one asks for, in memory
			// that counts against no cgroup (192 MiB of it in a guest of 64 MiB, seen).
			// flock, one lock per open file, stays. Leases: a guest is the owner of the
			// client's files, and a lease stalls whoever opens them. Directory
			// notification.
			forbidden: []span{{unix.F_SETLK, unix.F_SETLKW}, {unix.F_OFD_SETLK, unix.F_OFD_SETLKW},
				{unix.F_SETLEASE, unix.F_DUPFD_CLOEXEC - 1}},
		},
		{
			call: "ioctl", index: 1,
			// What isatty, terminal sizes, non-blocking sockets, inheritance and copies of files ask.
			allowed: []span{only(unix.TCGETS), only(unix.TIOCGWINSZ), only(unix.TIOCINQ), only(fionbio),
				{fionclex, fioasync}, only(unix.FICLONE)},
			// Terminals: TIOCSTI types into one, TIOCLINUX pastes, TIOCSETD loads line
			// disciplines. Network interfaces.
			forbidden: []span{{unix.TCGETS + 1, unix.TIOCSTI}, {unix.TIOCLINUX, fionbio - 1}, {fionbio + 1, 0x542f}, {0x8900, 0x89ff}},
		},
		{
			// Asking, not changing: other personalities switch off address
			// randomisation or map page zero.
			call: "personality", index: 0,
			allowed:   []span{only(0xffffffff)},
			forbidden: []span{{0, 0xfffffffe}},
		},
		{
			call: "prctl", index: 0,
			// Settings of the caller that give it nothing: names, parent death,
			// dumpability, timer slack, subreaper, no-new-privs, huge pages, what
			// other processors have, and the names that glibc and CPython 3.13 give to
			// anonymous memory.
			allowed: []span{{0, unix.PR_GET_SECCOMP}, only(unix.PR_CAPBSET_READ), {unix.PR_SET_TIMERSLACK, unix.PR_GET_TIMERSLACK},
				{unix.PR_SET_CHILD_SUBREAPER, unix.PR_GET_THP_DISABLE}, only(unix.PR_SET_VMA)},
			// Filters, capabilities, securebits, perf, the memory map of the process, and
			// everything newer up to 127.
			forbidden: []span{only(unix.PR_SET_SECCOMP), {unix.PR_CAPBSET_DROP, unix.PR_SET_SECUREBITS},
				{unix.PR_TASK_PERF_EVENTS_DISABLE, unix.PR_SET_MM}, {unix.PR_GET_THP_DISABLE + 1, 127}},
		},
	}
}

// masked compares argument index under a mask.
func masked(index uint, mask, value uint64) specs.LinuxSeccompArg {
	return block{mask, value}.arg(index)
}

func equal(index uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
}

// modeRules allow to open files and to change modes, but not to make a set-uid or
// set-gid file. In a writable directory of the host that would be a program which
// the guest wrote and which anybody there can run as the client: the file belongs
// to the client, and the mount's nosuid holds for the guest only.
func modeRules() []specs.LinuxSyscall {
	var out []specs.LinuxSyscall
	for _, c := range []struct {
		call string
		mode uint
	}{{"chmod", 1}, {"fchmod", 1}, {"fchmodat", 2}, {"fchmodat2", 2}, {"creat", 1}} {
		out = append(out,
			allow(c.call, masked(c.mode, unix.S_ISUID|unix.S_ISGID, 0)),
			forbid([]string{c.call}, masked(c.mode, unix.S_ISUID, unix.S_ISUID)),
			forbid([]string{c.call}, masked(c.mode, unix.S_ISGID, unix.S_ISGID)))
	}
	// Without O_CREAT and O_TMPFILE the mode is whatever the register holds.
	const creates = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY
	for _, c := range []struct {
		call  string
		flags uint
	}{{"open", 1}, {"openat", 2}} {
		mode := c.flags + 1
		out = append(out,
			allow(c.call, masked(c.flags, creates, 0)),
			allow(c.call, masked(mode, unix.S_ISUID|unix.S_ISGID, 0)))
		for _, flag := range []uint64{unix.O_CREAT, unix.O_TMPFILE &^ unix.O_DIRECTORY} {
			out = append(out,
				forbid([]string{c.call}, masked(c.flags, flag, flag), masked(mode, unix.S_ISUID, unix.S_ISUID)),
				forbid([]string{c.call}, masked(c.flags, flag, flag), masked(mode, unix.S_ISGID, unix.S_ISGID)))
		}
	}
	return out
}

// cloneRules allow processes and threads, in the namespaces that are there.
func cloneRules() []specs.LinuxSyscall {
	namespaces := []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC,
		unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET}
	var all uint64
	var out []specs.LinuxSyscall
	for _, flag := range namespaces {
		all |= flag
		out = append(out, forbid([]string{"clone"}, masked(0, flag, flag)))
	}
	return append(out, allow("clone", masked(0, all, 0)))
}

// socketTypeMask is the part of socket's second argument that is the type; the
// rest is SOCK_CLOEXEC and SOCK_NONBLOCK.
const socketTypeMask = 0xf

// socketRules allow TCP over IPv4 and IPv6, and UDP to a guest whose policy has an
// endpoint for it: that is all that a policy can open. AF_UNIX reaches out through
// read-only mounts; netlink, packet, vsock and the many others are kernel interfaces.
func socketRules(udp bool) []specs.LinuxSyscall {
	type kind struct{ number, protocol uint64 }
	domains := []span{only(unix.AF_INET), only(unix.AF_INET6)}
	protocols := []span{only(0), only(unix.IPPROTO_TCP)}
	kinds := []kind{{unix.SOCK_STREAM, unix.IPPROTO_TCP}}
	// Every type but 1: the lowest bit is clear, or another one is set.
	otherTypes := []specs.LinuxSeccompArg{masked(1, 1, 0), masked(1, 2, 2), masked(1, 4, 4), masked(1, 8, 8)}
	if udp {
		protocols = append(protocols, only(unix.IPPROTO_UDP))
		kinds = append(kinds, kind{unix.SOCK_DGRAM, unix.IPPROTO_UDP})
		// Every type but 1 and 2; other protocols of theirs do not exist, or are not listed.
		otherTypes = []specs.LinuxSeccompArg{masked(1, 3, 0), masked(1, 3, 3), masked(1, 4, 4), masked(1, 8, 8)}
	}
	var out []specs.LinuxSyscall
	for _, domain := range domains {
		for _, k := range kinds {
			for _, protocol := range []uint64{0, k.protocol} {
				out = append(out, allow("socket", equal(0, domain.low),
					masked(1, socketTypeMask, k.number), equal(2, protocol)))
			}
		}
	}
	for _, arg := range append(append(outside(0, domains), outside(2, protocols)...), otherTypes...) {
		out = append(out, forbid([]string{"socket"}, arg))
	}
	return out
}

// socketpairRules allow connected AF_UNIX pairs of streams (1) and packets (5), and of
// datagrams (2) only on request: one end of such a pair can still send to any socket by path.
func socketpairRules(datagrams bool) []specs.LinuxSyscall {
	const streamOrSeqpacket = socketTypeMask &^ (unix.SOCK_STREAM ^ unix.SOCK_SEQPACKET)
	pair := func(mask, kind uint64) specs.LinuxSyscall {
		return allow("socketpair", equal(0, unix.AF_UNIX), masked(1, mask, kind))
	}
	out := []specs.LinuxSyscall{pair(streamOrSeqpacket, unix.SOCK_STREAM)}
	// Every other type: the lowest bit is clear, or another one is set.
	others := []specs.LinuxSeccompArg{masked(1, 1, 0), masked(1, 2, 2), masked(1, 8, 8)}
	if datagrams {
		out = append(out, pair(socketTypeMask, unix.SOCK_DGRAM))
		others = []specs.LinuxSeccompArg{masked(1, 3, 0), masked(1, 3, 3), masked(1, 6, 6), masked(1, 8, 8)}
	}
	for _, arg := range append(outside(0, []span{only(unix.AF_UNIX)}), others...) {
		out = append(out, forbid([]string{"socketpair"}, arg))
	}
	return out
}

// setsockoptRules allow the options of ordinary TCP clients and servers, and
// forbid programs attached to sockets, upper layer protocols in the kernel
// (TCP_ULP) and packet filters.
func setsockoptRules() []specs.LinuxSyscall {
	const tableSet = 64 // the first of iptables' options, and of ip6tables'
	levels := []struct {
		level              uint64
		allowed, forbidden []span
	}{
		{unix.SOL_IP, []span{{unix.IP_TOS, unix.IP_TTL}, only(unix.IP_BIND_ADDRESS_NO_PORT)}, []span{{tableSet, tableSet + 3}}},
		{
			unix.SOL_SOCKET, []span{{0, unix.SO_LINGER}, only(unix.SO_REUSEPORT), {unix.SO_RCVLOWAT, unix.SO_SNDTIMEO}},
			[]span{{unix.SO_ATTACH_FILTER, unix.SO_DETACH_FILTER}, only(unix.SO_ATTACH_BPF), {unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF}},
		},
		{
			unix.SOL_TCP, []span{{0, unix.TCP_CONGESTION}, only(unix.TCP_USER_TIMEOUT), only(unix.TCP_FASTOPEN), only(unix.TCP_NOTSENT_LOWAT)},
			[]span{only(unix.TCP_ULP)},
		},
		{unix.SOL_IPV6, []span{only(unix.IPV6_UNICAST_HOPS), only(unix.IPV6_V6ONLY), only(unix.IPV6_TCLASS)}, []span{{tableSet, tableSet + 1}}},
	}
	var out []specs.LinuxSyscall
	for _, l := range levels {
		for _, option := range within(2, l.allowed) {
			out = append(out, allow("setsockopt", equal(1, l.level), option))
		}
		for _, option := range within(2, l.forbidden) {
			out = append(out, forbid([]string{"setsockopt"}, equal(1, l.level), option))
		}
	}
	return out
}
