package engine

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
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
	errName := errors.New("under an engine's network the container resolves names itself, and the kernel sees addresses only: write the address, or run it as a guest of psi")
	tcp, tcpDenied := n.policy.TCPRules()
	udp, udpDenied := n.policy.UDPRules()
	for _, e := range slices.Concat(tcp, tcpDenied, udp, udpDenied) {
		if _, ok := e.Prefix(); !ok {
			if err := n.misses(endpointRule(e), errName); err != nil {
				return err
			}
		}
	}
	l := n.policy.Limits()
	for _, limit := range []struct {
		key   string
		value int64
	}{{"net_conns", l.NetConns}, {"net_rate", l.NetRate}, {"net_bytes", l.NetBytes}} {
		if limit.value == 0 {
			continue
		}
		if err := n.misses(fmt.Sprintf("%s: %d", limit.key, limit.value), errors.New("connections under an engine's network do not pass through psi, so nobody counts them: limit them in the engine's network")); err != nil {
			return err
		}
	}
	for _, port := range n.policy.Expose() {
		if err := n.misses(fmt.Sprintf("expose: %d", port), errors.New("under an engine's network a port would be open to whoever reaches that network, not to the host alone: run it as a guest of psi, or leave expose out and have the engine publish the port of a container without a policy")); err != nil {
			return err
		}
	}
	if n.host.Network != nil {
		return n.misses("tcp", n.host.Network)
	}
	const by = "cgroup eBPF"
	if len(tcp)+len(udp) == 0 {
		n.holds("tcp: []", by+": no connection, datagram or bound port")
	}
	for _, e := range n.policy.Endpoints() {
		if _, ok := e.Prefix(); ok {
			n.holds(endpointRule(e), by)
		}
	}
	return nil
}

// endpointRule writes an endpoint as documents do, with its key.
func endpointRule(e policy.Endpoint) string {
	kind := "tcp: "
	if e.UDP {
		kind = "udp: "
	}
	if e.Deny {
		kind += "deny "
	}
	return kind + e.String()
}
