package psi

import (
	"context"
	"fmt"
	"net"
	"time"
)

// acceptPatience is how long a guest may take to accept when ctx has no deadline.
const acceptPatience = time.Minute

// Connect connects to a port at which the guest listens, and which its policy exposes
// (expose: [8000]). Nobody but the guest's owner can, and the port is at no address of
// the host. The connection is the caller's, to close as well; its addresses are those of
// the guest's own loopback. A *TimeoutError says that the guest has not accepted before
// ctx ended.
func (sb *Sandbox) Connect(ctx context.Context, port uint16) (net.Conn, error) {
	if err := sb.Err(); err != nil {
		return nil, err
	}
	patience := acceptPatience
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, max(0, time.Until(deadline)))
	}
	fields := sb.about(map[string]any{"port": port, "timeout": patience.Seconds()})
	p, err := sb.client.link.tell(sb.name, "connect", fields, func(r *reply) { r.adoptConn(sb.name) })
	if err != nil {
		return nil, err
	}
	select {
	case r := <-p.done:
		if r.err != nil && !isTimeout(r.err) {
			if ended := sb.Err(); ended != nil {
				return nil, ended
			}
		}
		return r.conn, r.err
	case <-ctx.Done():
		// This ends when the supervisor has answered, or ended.
		go func() {
			if r := <-p.done; r.conn != nil {
				_ = r.conn.Close()
			}
		}()
		return nil, expired(ctx, sb.name, fmt.Sprintf("connecting to port %d", port))
	}
}

// adoptConn makes a connection of the descriptor that came with a reply.
func (r *reply) adoptConn(sandbox string) {
	if len(r.files) != 1 {
		r.err = &SandboxError{Sandbox: sandbox, Text: fmt.Sprintf("the supervisor's reply to a connect has %d descriptors", len(r.files))}
		return
	}
	conn, err := net.FileConn(r.files[0])
	if err != nil {
		r.err = &SandboxError{Sandbox: sandbox, Text: fmt.Sprintf("opening the connection: %v", err)}
		return
	}
	r.conn = conn
}
