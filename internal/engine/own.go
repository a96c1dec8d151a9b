package engine

import (
	"fmt"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Own reports what holds the rules of a bundle of psi's own. by is what does beside its
// mounts and its filter, pairs who decides where pairs of datagram sockets lead.
func Own(p policy.Policy, by Holds, pairs Pairs) []Enforcement {
	n := &narrowing{policy: p}
	l := p.Limits()
	n.holds("mem: "+size(l.Mem), "memory cgroup")
	n.holds(fmt.Sprintf("cpu: %g", l.CPU), "cpu cgroup")
	n.holds(fmt.Sprintf("pids: %d", l.PIDs), "pids cgroup")
	n.holds(fmt.Sprintf("open_files: %d", l.OpenFiles), "RLIMIT_NOFILE")
	n.clocks()
	n.holds("tmp: "+size(l.Tmp), "tmpfs size")
	network := "empty network namespace, cgroup eBPF"
	if by.Network != nil {
		network = "empty network namespace only: " + by.Network.Error()
	}
	if len(p.Endpoints()) == 0 {
		n.holds("tcp: []", "%s", network)
	}
	for _, e := range p.Endpoints() {
		n.out.Enforced = append(n.out.Enforced, Enforcement{Rule: endpointRule(e), By: "proxy, " + network, Missing: by.Network != nil})
	}
	for _, port := range p.Expose() {
		n.out.Enforced = append(n.out.Enforced, Enforcement{Rule: fmt.Sprintf("expose: %d", port), By: "connect on request, " + network, Missing: by.Network != nil})
	}
	beside := ""
	if by.Files {
		beside = ", and " + lsm
	}
	for _, r := range p.FS() {
		n.holds(fmt.Sprintf("fs: %s %s", r.Mode, r.Pattern), "mounts, made when the bundle was%s", beside)
	}
	n.holds("system calls", "seccomp filter: CPython's list")
	n.holdsPairs(pairs)
	const agent = "the guest's agent"
	n.holds("message: "+size(l.Message), agent)
	n.holds("output: "+size(l.Output), agent)
	if modules, limited := p.Imports(); limited {
		n.holds(importsRule(modules), "files of the root, which was made with the bundle; "+agent)
	}
	return n.out.Enforced
}

// clocks reports the limits that somebody on the host has to watch.
func (n *narrowing) clocks() {
	l := n.policy.Limits()
	if l.CPUTime > 0 {
		n.holds(fmt.Sprintf("cpu_ms: %d", l.CPUTime.Milliseconds()), "psi-runtime attend")
	}
	if l.Wall > 0 {
		n.holds(fmt.Sprintf("wall_ms: %d", l.Wall.Milliseconds()), "psi-runtime attend")
	}
}
