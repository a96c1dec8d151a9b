package netproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Where an engine made the network, connections do not pass through the proxy, and the
// programs at the cgroup are asked when one begins only. So those that a new policy
// forbids are found in the namespace's table of sockets (sock_diag), by the cgroup that
// they were made in: other containers of a pod have theirs there too. The kernel then
// resets them, whoever holds them.

// Forbidden are connections to be cut.
type Forbidden struct {
	netns   *os.File
	sockets []diagSocket
}

// diagSocket is how sock_diag names a socket.
type diagSocket struct {
	family, protocol uint8
	id               [diagID]byte
	remote           netip.AddrPort
}

// The layouts of struct inet_diag_req_v2 and inet_diag_msg (linux/inet_diag.h).
const (
	diagID      = 48     // struct inet_diag_sockid: ports, addresses, interface, cookie
	diagHeader  = 4      // of inet_diag_msg, before its id
	diagMessage = 72     // inet_diag_msg as a whole; attributes follow
	cgroupID    = 21     // INET_DIAG_CGROUP_ID
	connected   = 0x0b3e // all states but those without a peer: TIME_WAIT, CLOSE, LISTEN, NEW_SYN_RECV
	finWait2    = 5      // TCP_FIN_WAIT2
)

// FindForbidden finds the connections of the cgroups to what eps, which are addresses, do
// not allow; with udp, connected sockets for datagrams too. It fails if there is one and
// the kernel could not cut it. The container is frozen, so that nothing begins meanwhile.
// The caller closes netns after [Forbidden.Cut].
func FindForbidden(netns *os.File, groups map[uint64]bool, eps []policy.Endpoint, udp bool) (f Forbidden, err error) {
	list, err := endpoint.Compile(eps)
	if err != nil {
		return f, err
	}
	f.netns = netns
	protocols := []uint8{unix.IPPROTO_TCP}
	if udp {
		protocols = append(protocols, unix.IPPROTO_UDP)
	}
	err = inside(netns, func() error {
		for _, protocol := range protocols {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				found, err := connections(family, protocol, groups)
				if err != nil {
					return err
				}
				for _, s := range found {
					if !allows(list, s) {
						f.sockets = append(f.sockets, s)
					}
				}
			}
		}
		if len(f.sockets) == 0 {
			return nil
		}
		// A socket that is not there: a kernel that can says so.
		probe := diagSocket{family: unix.AF_INET, protocol: unix.IPPROTO_TCP}
		if err := probe.destroy(); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("the connection to %s would be forbidden, and this kernel cannot cut it (CONFIG_INET_DIAG_DESTROY): end it, or make a new container: %w", f.sockets[0].remote, err)
		}
		return nil
	})
	if err != nil {
		return Forbidden{}, fmt.Errorf("looking for connections to cut: %w", err)
	}
	return f, nil
}

func allows(list endpoint.List, s diagSocket) bool {
	protocol := endpoint.TCP
	if s.protocol == unix.IPPROTO_UDP {
		protocol = endpoint.UDP
	}
	return list.Allows(protocol, s.remote.Addr(), s.remote.Port())
}

// Cut resets them. One that has ended meanwhile is none.
func (f Forbidden) Cut() error {
	if len(f.sockets) == 0 {
		return nil
	}
	return inside(f.netns, func() error {
		var errs []error
		for _, s := range f.sockets {
			if err := s.destroy(); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("cutting the connection to %s: %w", s.remote, err))
			}
		}
		return errors.Join(errs...)
	})
}

// connections lists those of this thread's network namespace.
func connections(family, protocol uint8, groups map[uint64]bool) (found []diagSocket, err error) {
	r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	r.AddRawData(diagRequest(diagSocket{family: family, protocol: protocol}, connected))
	messages, err := r.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return nil, fmt.Errorf("listing sockets (sock_diag): %w", err)
	}
	for _, m := range messages {
		s, group, err := parseSocket(m, protocol)
		if err != nil {
			return nil, err
		}
		if groups[group] {
			found = append(found, s)
		}
	}
	return found, nil
}

func diagRequest(s diagSocket, states uint32) []byte {
	r := append([]byte{s.family, s.protocol, 0, 0}, binary.NativeEndian.AppendUint32(nil, states)...)
	return append(r, s.id[:]...)
}

var errSocketMessage = errors.New("the kernel's answer about a socket is not understood")

// parseSocket reads a struct inet_diag_msg and the cgroup of its socket.
func parseSocket(m []byte, protocol uint8) (s diagSocket, group uint64, err error) {
	if len(m) < diagMessage {
		return s, 0, errSocketMessage
	}
	s.family, s.protocol = m[0], protocol
	copy(s.id[:], m[diagHeader:])
	port := binary.BigEndian.Uint16(s.id[2:])
	size := 4
	if s.family == unix.AF_INET6 {
		size = 16
	}
	address, _ := netip.AddrFromSlice(s.id[20 : 20+size])
	s.remote = netip.AddrPortFrom(address.Unmap(), port)
	attributes, err := nl.ParseRouteAttr(m[diagMessage:])
	if err != nil {
		return s, 0, fmt.Errorf("%w: %w", errSocketMessage, err)
	}
	for _, a := range attributes {
		if a.Attr.Type == cgroupID && len(a.Value) >= 8 {
			return s, binary.NativeEndian.Uint64(a.Value), nil
		}
	}
	if m[1] == finWait2 {
		return s, 0, nil // what is left of a socket that was closed
	}
	return s, 0, fmt.Errorf("%w: it names no cgroup, which Linux 5.8 does", errSocketMessage)
}

func (s diagSocket) destroy() error {
	r := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	r.AddRawData(diagRequest(s, 0))
	_, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
