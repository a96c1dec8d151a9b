package engine

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// namespaces refuses a container that shares with the host what a policy cannot hold.
// Sharing with another container (a pod) is the engine's business.
func (n *narrowing) namespaces() error {
	reasons := []struct {
		kind specs.LinuxNamespaceType
		why  string
	}{
		{specs.MountNamespace, "its mounts would be the host's"},
		{specs.PIDNamespace, "it could see and signal the host's processes"},
		{specs.IPCNamespace, "it could open the host's shared memory"},
		{specs.NetworkNamespace, "it could connect to the host's abstract unix sockets, and change its network"},
	}
	for _, r := range reasons {
		at := slices.IndexFunc(n.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == r.kind })
		if at < 0 || n.host.OwnNamespaces[n.spec.Linux.Namespaces[at].Path] {
			return fmt.Errorf("the container shares the host's %s namespace, so %s: give it one of its own", r.kind, r.why)
		}
	}
	return nil
}

// network: the list of endpoints is held at the cgroup, by address.
func (n *narrowing) network() error {
	allowed, denied := n.policy.TCPRules()
	for _, e := range slices.Concat(allowed, denied) {
		if _, ok := e.Prefix(); !ok {
			err := errors.New("under an engine's network the container resolves names itself, and the kernel sees addresses only: write the address, or run it as a guest of psi")
			if err := n.misses("tcp: "+e.String(), err); err != nil {
				return err
			}
		}
	}
	if n.host.Network != nil {
		return n.misses("tcp", n.host.Network)
	}
	const by = "cgroup eBPF"
	if len(allowed) == 0 {
		n.holds("tcp: []", by+": no connection, datagram or bound port")
	}
	for _, e := range n.policy.TCP() {
		if _, ok := e.Prefix(); ok {
			n.holds("tcp: "+e.String(), by)
		}
	}
	return nil
}
