package psi

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// sendPatience is how long a supervisor may take to take in a request.
const sendPatience = 30 * time.Second

// reply is the answer to a request: what adopt made of it, or an error.
type reply struct {
	ok    json.RawMessage
	made  *Sandbox // of a spawn
	conn  net.Conn // of a connect
	err   error
	files []*os.File
}

// pending is a request that waits for its reply. adopt, if there is one, runs on the
// reader's goroutine, before any later message is looked at.
type pending struct {
	done  chan reply // takes one
	adopt func(*reply)
	name  string // of the sandbox that it is about, for errors
}

// link is a control connection.
type link struct {
	conn *net.UnixConn

	sending sync.Mutex // one request at a time

	mu     sync.Mutex // guards the fields below
	waits  map[uint64]*pending
	lastID uint64
	lost   error // why there is no connection any more
}

func newLink(conn *net.UnixConn) *link {
	return &link{conn: conn, waits: make(map[uint64]*pending)}
}

// ask sends a request and waits for its reply.
func (l *link) ask(ctx context.Context, name, op string, fields map[string]any) (json.RawMessage, error) {
	p, err := l.tell(name, op, fields, nil)
	if err != nil {
		return nil, err
	}
	select {
	case r := <-p.done:
		return r.ok, r.err
	case <-ctx.Done():
		return nil, expired(ctx, name, fmt.Sprintf("the supervisor has not answered %q", op))
	}
}

// tell sends a request and does not wait.
func (l *link) tell(name, op string, fields map[string]any, adopt func(*reply)) (*pending, error) {
	p := &pending{done: make(chan reply, 1), adopt: adopt, name: name}
	l.mu.Lock()
	if l.lost != nil {
		defer l.mu.Unlock()
		return nil, l.lost
	}
	l.lastID++
	id := l.lastID
	l.waits[id] = p
	l.mu.Unlock()

	request := map[string]any{"id": id, "op": op}
	for key, value := range fields {
		request[key] = value
	}
	body, err := json.Marshal(request)
	if err == nil && len(body) > control.MaxFrame {
		err = &PolicyError{SandboxError{Sandbox: name, Text: fmt.Sprintf("a request of %d bytes; at most %d fit: make the policy smaller", len(body), control.MaxFrame)}}
	}
	if err == nil {
		l.sending.Lock()
		_ = l.conn.SetWriteDeadline(time.Now().Add(sendPatience))
		_, err = l.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
		l.sending.Unlock()
		if err != nil {
			err = &SandboxError{Sandbox: name, Cause: control.CauseSupervisor, Text: fmt.Sprintf("sending %q to the supervisor: %v", op, err)}
		}
	}
	if err != nil {
		l.mu.Lock()
		delete(l.waits, id)
		l.mu.Unlock()
		return nil, err
	}
	return p, nil
}

// read takes in what the supervisor says until the connection ends; what has no id goes
// to push. Then every request that waits fails, and fails from then on.
func (l *link) read(push func(json.RawMessage)) {
	receiver := control.NewReceiver(l.conn)
	var err error
	for err == nil {
		var body []byte
		var files []*os.File
		if body, files, err = receiver.Receive(); err == nil {
			err = l.take(body, files, push)
		}
	}
	text := fmt.Sprintf("the connection to the supervisor failed: %v", err)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		text = "the connection to the supervisor ended"
	}
	l.mu.Lock()
	l.lost = &SandboxError{Cause: control.CauseSupervisor, Text: text}
	waits := l.waits
	l.waits = nil
	l.mu.Unlock()
	for _, p := range waits {
		p.done <- reply{err: l.lost}
	}
	l.conn.Close()
}

// take handles one message. Descriptors that nobody takes are closed.
func (l *link) take(body []byte, files []*os.File, push func(json.RawMessage)) error {
	r := reply{files: files}
	defer func() {
		for _, file := range r.files {
			_ = file.Close()
		}
	}()
	var m struct {
		ID    *uint64         `json:"id"`
		OK    json.RawMessage `json:"ok"`
		Error *struct {
			Kind    string `json:"kind"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("a message that is no JSON object: %w", err)
	}
	if m.ID == nil {
		push(body)
		return nil
	}
	l.mu.Lock()
	p := l.waits[*m.ID]
	delete(l.waits, *m.ID)
	l.mu.Unlock()
	if p == nil {
		return fmt.Errorf("a reply to request %d, which was not asked", *m.ID)
	}
	r.ok = m.OK
	if m.Error != nil {
		r.err = refusal(p.name, m.Error.Kind, m.Error.Message)
	} else if p.adopt != nil {
		p.adopt(&r)
	}
	p.done <- r
	return nil
}

// expired is the error of a wait whose context ended first.
func expired(ctx context.Context, name, text string) error {
	reason := context.Cause(ctx)
	if name != "" {
		text += fmt.Sprintf(" (sandbox %q)", name)
	}
	return &TimeoutError{SandboxError{Sandbox: name, Text: fmt.Sprintf("%s: %v", text, reason)}, ctx.Err()}
}
