package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/view"
)

// soPeerPIDFD asks for a descriptor of the process at the other end (Linux 6.5).
const soPeerPIDFD = 77

// peer is who stands at the other end of a control socket: the credentials that the
// kernel noted when the socket was connected (or, for a pair, made).
type peer struct {
	uid, gid uint32
	groups   []uint32
	process  *os.File // pidfd; nil where the kernel cannot tell (before 6.5)
}

// root says whether the peer may do on this machine whatever the supervisor may.
func (p peer) root() bool { return p.uid == 0 }

// identity is whose rights decide about files.
func (p peer) identity() view.Identity {
	return view.Identity{UID: p.uid, GID: p.gid, Groups: p.groups}
}

func (p peer) String() string { return fmt.Sprintf("uid %d", p.uid) }

// peerOf asks the kernel who is at the other end. The process id is of no use here:
// clients live outside the supervisor's pid namespace and would all be 0.
func peerOf(conn *net.UnixConn) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("asking for peer credentials: %w", err)
	}
	var p peer
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			inner = err
			return
		}
		p.uid, p.gid = cred.Uid, cred.Gid
		if p.groups, inner = peerGroups(int(fd)); inner != nil {
			return
		}
		p.process, inner = peerProcess(int(fd))
	})
	if err = errors.Join(err, inner); err != nil {
		return peer{}, fmt.Errorf("asking for peer credentials: %w", err)
	}
	return p, nil
}

// peerProcess opens a pidfd of the peer; nil without error where the kernel has no such option.
func peerProcess(fd int) (*os.File, error) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soPeerPIDFD)
	switch {
	case err == nil:
		return os.NewFile(uintptr(pidfd), "peer pidfd"), nil
	case errors.Is(err, unix.ENOPROTOOPT):
		return nil, nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return nil, errors.New("the peer has already ended")
	}
	return nil, err
}

// peerGroups reads the supplementary groups (SO_PEERGROUPS wants the buffer's size right).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups):
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
