package bridge

import (
	"bufio"
	"encoding/json"
	"net"
	"time"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
)

// lastEvents is how long after a guest's end what happened to it may take to come: its client
// waits for the end itself.
const lastEvents = 500 * time.Millisecond

// events are those of one guest on their way from who attends its container to the
// client. A client that is slow holds up nothing but these: those that there was no room for
// are counted at the other end.
type events struct {
	conn *net.UnixConn // nil: nobody tells
	done chan struct{}
	end  *control.Event // what the guest was killed for; once done
}

// relayEvents begins to tell the client what happens to the guest.
func (s *server) relayEvents(g *guest) *events {
	r := &events{conn: dialEvents(g.container), done: make(chan struct{})}
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
			e.Guest, e.Name = g.id, g.name
			if e.Event == control.MemKill || e.Event == control.CPUThrottle && e.Details["reason"] == "cpu_ms" {
				r.end = &e
			}
			s.send(e, nil)
		}
	}()
	return r
}

// dialEvents connects to who attends a container; nil if nobody does: it has another runtime,
// or no policy. It may be below any root: podman names none, and Docker one of its own.
func dialEvents(id string) *net.UnixConn {
	if id == "" {
		return nil
	}
	dirs, _ := container.StateDirs(id)
	for _, dir := range dirs {
		if conn, err := control.DialEvents(dir); err == nil {
			return conn
		}
	}
	return nil
}

// finish returns when all was told, some time after the guest's end at the latest, and with
// what the guest was killed for, if that was told.
func (r *events) finish() *control.Event {
	if r.conn != nil {
		_ = r.conn.SetReadDeadline(time.Now().Add(lastEvents))
	}
	<-r.done
	return r.end
}
