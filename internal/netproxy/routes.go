package netproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// loopbackIndex is the number of lo in every network namespace (the kernel's
// LOOPBACK_IFINDEX).
const loopbackIndex = 1

// maxAsked bounds the requests that are sent at once, so that the socket has room for
// the answers.
const maxAsked = 64

// routes is a netlink socket, which belongs to the network namespace in which it was
// opened wherever it is used. Both ends are plain structs of the kernel's:
//
//	nlmsghdr | rtmsg | rtattr dst, address | rtattr oif, index     ──► kernel
//	nlmsghdr | nlmsgerr: 0 or -errno                               ◄── one for each
//
// A library's requests allocate 64 KiB each, which a reload of a thousand guests pays for. -1 is none.
type routes struct{ fd int }

// openRoutes opens those of the namespace that this thread is in.
func openRoutes() (routes, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return routes{-1}, fmt.Errorf("opening a netlink socket in the guest's network namespace: %w", err)
	}
	return routes{fd}, nil
}

// close lets go of the socket, if there is one.
func (r routes) close() {
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
	}
}

// loopbackUp brings the namespace's loopback up.
func (r routes) loopbackUp() error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], loopbackIndex)
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)  // flags
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP) // of which so much changes
	if err := r.ask([][]byte{request(unix.RTM_NEWLINK, 0, body)}, 0); err != nil {
		return fmt.Errorf("bringing the guest's loopback up: %w", err)
	}
	return nil
}

// add makes every address of the blocks one of the namespace's own, of all blocks or of none.
func (r routes) add(blocks []netip.Prefix) error {
	if err := r.ask(localRoutes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, blocks), unix.EEXIST); err != nil {
		return errors.Join(fmt.Errorf("making %v local to the guest: %w", blocks, err), r.remove(blocks))
	}
	return nil
}

// remove is the opposite. It removes what it can.
func (r routes) remove(blocks []netip.Prefix) error {
	if err := r.ask(localRoutes(unix.RTM_DELROUTE, 0, blocks), unix.ESRCH); err != nil {
		return fmt.Errorf("taking %v from the guest: %w", blocks, err)
	}
	return nil
}

// localRoutes are requests about the blocks in the table of what is local.
func localRoutes(kind, flags uint16, blocks []netip.Prefix) [][]byte {
	messages := make([][]byte, 0, len(blocks))
	for _, block := range blocks {
		addr, family := block.Addr().AsSlice(), byte(unix.AF_INET)
		if block.Addr().Is6() {
			family = unix.AF_INET6
		}
		body := make([]byte, unix.SizeofRtMsg, 64)
		body[0], body[1] = family, byte(block.Bits())
		body[4], body[5], body[6], body[7] = unix.RT_TABLE_LOCAL, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
		body = appendAttribute(body, unix.RTA_DST, addr)
		body = appendAttribute(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopbackIndex))
		messages = append(messages, request(kind, flags, body))
	}
	return messages
}

// appendAttribute appends one whose value needs no padding.
func appendAttribute(body []byte, kind uint16, value []byte) []byte {
	body = binary.NativeEndian.AppendUint16(body, uint16(unix.SizeofRtAttr+len(value)))
	body = binary.NativeEndian.AppendUint16(body, kind)
	return append(body, value...)
}

// request is a message whose answer is wanted.
func request(kind, flags uint16, body []byte) []byte {
	message := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(message, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(message[4:], kind)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	return append(message, body...)
}

// ask sends the messages and returns the first error that the kernel answers with, but
// for the one that is none here. All of them are carried out.
func (r routes) ask(messages [][]byte, none unix.Errno) error {
	var errs []error
	for some := range slices.Chunk(messages, maxAsked) {
		kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
		if err := unix.Sendto(r.fd, slices.Concat(some...), 0, kernel); err != nil {
			return errors.Join(append(errs, err)...)
		}
		for range some { // the answers are there: the kernel has done it all before the call returned
			errno, err := r.answer()
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			if errno != 0 && errno != none {
				errs = append(errs, errno)
			}
		}
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// answer reads one: the kernel's verdict.
func (r routes) answer() (unix.Errno, error) {
	var buf [256]byte
	n, from, err := unix.Recvfrom(r.fd, buf[:], unix.MSG_DONTWAIT)
	if err != nil {
		return 0, err
	}
	sender, ok := from.(*unix.SockaddrNetlink)
	if !ok || sender.Pid != 0 || n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return 0, errors.New("an answer that is not the kernel's")
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:]))), nil
}
