package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/psi-runtime/psi/internal/control"
)

// rootListener is where root's tools (psi-runtime policy apply, psi-runtime events) find
// a supervisor, an embedded one too. Its name is abstract: it needs no file that a crash
// could leave, and ends with the process. Anybody on the host may connect to such a name,
// and is asked who he is before a byte of his is read.
type rootListener struct{ socket *net.UnixListener }

func (s *Supervisor) listenForRoot() (*rootListener, error) {
	name := control.SupervisorName(filepath.Base(s.owner.Dir()))
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for root's tools: %w", err)
	}
	l := &rootListener{socket}
	go l.serve(s)
	return l, nil
}

func (l *rootListener) serve(s *Supervisor) {
	for {
		conn, err := l.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.opts.Log.WithError(err).Warn("accepting one of root's tools")
			continue
		}
		if uid, err := control.PeerUID(conn); err != nil || uid != uint32(os.Geteuid()) {
			log := s.opts.Log.WithField("uid", uid)
			if err != nil {
				log = log.WithError(err)
			}
			log.Warn("refusing a client that is not root")
			_ = conn.Close()
			continue
		}
		go s.ServeConn(conn, nil)
	}
}

func (l *rootListener) close() { _ = l.socket.Close() }
