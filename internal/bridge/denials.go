package bridge

import (
	"bufio"
	"encoding/json"
	"net"
	"path/filepath"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// stateDir is where psi-runtime keeps the state of podman's containers: its own default,
// because podman names no other.
const stateDir = "/run/psi"

// lastDenials is how long after a guest's end what it was denied may take to come: its client
// waits for the end itself.
const lastDenials = 500 * time.Millisecond

// denials are those of one guest on their way from who attends its container to the
// client. A client that is slow holds up nothing but these: those that there was no room for
// are counted at the other end.
type denials struct {
	conn *net.UnixConn // nil: nobody tells
	done chan struct{}
}

// relayDenials begins to tell the client what the kernel refuses the guest.
func (s *server) relayDenials(g *guest) *denials {
	r := &denials{done: make(chan struct{})}
	if g.container != "" {
		// Another runtime, or another engine: then there are none.
		r.conn, _ = control.DialEvents(filepath.Join(stateDir, g.container))
	}
	if r.conn == nil {
		close(r.done)
		return r
	}
	go func() {
		defer close(r.done)
		defer r.conn.Close()
		for lines := json.NewDecoder(bufio.NewReader(r.conn)); ; {
			var e control.Event
			if lines.Decode(&e) != nil {
				return
			}
			if e.Event == control.Denied { // the others are the bridge's own to find out
				e.Guest, e.Name = g.id, g.name
				s.send(e, nil)
			}
		}
	}()
	return r
}

// finish returns when all was told, some time after the guest's end at the latest.
func (r *denials) finish() {
	if r.conn != nil {
		_ = r.conn.SetReadDeadline(time.Now().Add(lastDenials))
	}
	<-r.done
}
