package psi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"sync"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/channel"
)

// Client is a connection to a supervisor, with the guests that were spawned through it:
// they end when it does. When the supervisor dies, they end with cause "supervisor", and
// the client is of no more use: open another.
type Client struct {
	link    *link
	process *exec.Cmd     // a supervisor of our own; nil for a shared one
	read    chan struct{} // closed when nothing more will be read
	reaped  chan struct{} // closed when the process has been waited for

	mu       sync.Mutex          // guards the fields below
	names    map[string]*Sandbox // that run, by name
	guests   map[string]*Sandbox // that run, by the supervisor's id
	handles  map[*Sandbox]bool   // that nobody has closed
	watchers map[*watcher]bool   // nil when the client has ended
}

// SpawnOptions say what a guest may do.
type SpawnOptions struct {
	Policy Policy
	// AllowedImports limits what the guest's code may import, further than the policy does.
	// Nil leaves the policy's list as it is; an empty list allows nothing.
	AllowedImports []string
}

// Spawn starts a guest and returns its handle when it is ready to run code. The name is a
// label, unique among this client's guests: 1 to 64 letters, digits, '.', '_' and '-'.
// The guest lives until it ends by itself, is closed, or the client ends.
func (c *Client) Spawn(ctx context.Context, name string, o SpawnOptions) (*Sandbox, error) {
	if o.Policy.err != nil {
		return nil, o.Policy.err
	}
	fields := maps.Clone(o.Policy.fields)
	if fields == nil {
		fields = make(map[string]any)
	}
	fields["name"] = name
	if o.AllowedImports != nil {
		fields["allowed_imports"] = o.AllowedImports
	}
	p, err := c.link.tell(name, "spawn", fields, func(r *reply) { c.adopt(name, r) })
	if err != nil {
		return nil, err
	}
	select {
	case r := <-p.done:
		if r.err != nil {
			return nil, r.err
		}
		if err := r.made.waitReady(ctx); err != nil {
			r.made.discard()
			return nil, err
		}
		return r.made, nil
	case <-ctx.Done():
		// It may come to life all the same. This ends when the supervisor has answered, or ended.
		go func() {
			if r := <-p.done; r.made != nil {
				r.made.discard()
			}
		}()
		return nil, expired(ctx, name, "spawning")
	}
}

// adopt makes the handle of a guest, on the reader's goroutine.
func (c *Client) adopt(name string, r *reply) {
	var made struct {
		Guest    string        `json:"guest"`
		Digest   string        `json:"policy_digest"`
		Enforced []Enforcement `json:"enforced"`
		Relayed  bool          `json:"relayed"` // descriptors do not get to the guest
		Limits   struct {
			Message int64 `json:"message"`
		} `json:"limits"`
		Ready *channel.GuestReady `json:"ready"` // what the guest has said already when it was ready
	}
	if err := json.Unmarshal(r.ok, &made); err != nil || len(r.files) != 1 {
		r.err = &SandboxError{Sandbox: name, Text: fmt.Sprintf("the supervisor's reply to a spawn is not one: %d descriptors, %v", len(r.files), err)}
		return
	}
	found, err := net.FileConn(r.files[0])
	conn, ok := found.(*net.UnixConn)
	if err != nil || !ok {
		r.err = &SandboxError{Sandbox: name, Text: fmt.Sprintf("opening the guest's channel: %v", err)}
		return
	}
	r.made = &Sandbox{
		client: c, name: name, id: made.Guest, PolicyDigest: made.Digest, Enforced: made.Enforced,
		exited: make(chan struct{}),
	}
	r.made.message.Store(made.Limits.Message)
	r.made.budget.Store(made.Limits.Message)
	r.made.session = newSession(conn, made.Limits.Message, !made.Relayed, made.Ready, r.made.hear, r.made.report)
	c.mu.Lock()
	c.guests[made.Guest] = r.made
	c.names[name] = r.made
	c.handles[r.made] = true
	c.mu.Unlock()
}

// ListActive returns the sandboxes that run, by name.
func (c *Client) ListActive() map[string]*Sandbox {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.names)
}

// Close ends the client's guests and its connection, and a supervisor of its own. When it
// returns, nothing of theirs runs, and no goroutine of the client does.
func (c *Client) Close() error {
	_ = c.link.conn.CloseWrite()
	if c.process == nil {
		// A shared supervisor ends the guests, says so, and closes.
		_ = c.link.conn.SetReadDeadline(time.Now().Add(leave))
	}
	timer := time.AfterFunc(leave, func() {
		if c.process != nil {
			_ = c.process.Process.Kill()
		}
	})
	defer timer.Stop()
	<-c.read
	<-c.reaped
	c.mu.Lock()
	left := maps.Clone(c.handles)
	c.mu.Unlock()
	for sb := range left {
		sb.release()
	}
	return nil
}

// readAll serves the connection until it ends; then the sandboxes have ended as well.
func (c *Client) readAll() {
	defer close(c.read)
	c.link.read(c.pushed)
	c.mu.Lock()
	orphans := maps.Clone(c.guests)
	watchers := c.watchers
	c.watchers = nil
	c.mu.Unlock()
	for _, sb := range orphans {
		sb.onExited(control.Exit{Cause: control.CauseSupervisor, Message: c.link.lost.Error()})
	}
	for w := range watchers {
		w.end()
	}
}

// pushed handles what the supervisor says unasked.
func (c *Client) pushed(body json.RawMessage) {
	var m struct {
		Exited *control.Exit `json:"exited"`
		control.Event
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return // a kind of message that this version does not know
	}
	id := m.Guest
	if m.Exited != nil {
		id = m.Exited.Guest
	}
	c.mu.Lock()
	sb := c.guests[id]
	c.mu.Unlock()
	switch {
	case sb == nil: // closed meanwhile, or another client's
	case m.Exited != nil:
		sb.onExited(*m.Exited)
	case m.Event.Event != "":
		if m.Event.Event == PolicyHotload {
			sb.onReloaded(reloadedMessage(body))
		}
		c.publish(Event{Time: time.UnixMicro(int64(m.TS * 1e6)), Sandbox: sb, Type: m.Event.Event, Details: m.Details})
	}
}

// reloadedMessage is the limit of a value that a reload has put into force.
func reloadedMessage(event json.RawMessage) int64 {
	var reloaded struct {
		Details struct {
			Limits struct {
				Message int64 `json:"message"`
			} `json:"limits"`
		} `json:"details"`
	}
	_ = json.Unmarshal(event, &reloaded) // it has been read once
	return reloaded.Details.Limits.Message
}

// forget frees the name of a sandbox that has ended.
func (c *Client) forget(sb *Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.guests, sb.id)
	if c.names[sb.name] == sb {
		delete(c.names, sb.name)
	}
}

// Enforcement says which mechanism holds a part of a guest's policy.
type Enforcement struct {
	Rule string `json:"rule"`
	By   string `json:"by"`
}

// valueLimits are those of what a guest sends.
func valueLimits(message int64) channel.Limits {
	return channel.Limits{Message: int(message) + channel.ValueSlack}
}
