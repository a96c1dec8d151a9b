package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// patience bounds what a client may take to read a message.
const patience = 10 * time.Second

// server speaks with the one client of a bridge, who started it and is trusted.
type server struct {
	b       *Bridge
	conn    *net.UnixConn
	ctx     context.Context // ends with the client
	working sync.WaitGroup  // requests, and guests' ends

	writing sync.Mutex // one message at a time

	mu     sync.Mutex // guards the fields below
	guests map[string]*guest
	names  map[string]bool
	past   map[string]bool // ids of guests that have ended: closing one once more is no error
}

// Serve speaks the control protocol on socket, one end of a socket pair, until the client
// at the other end has gone, or ctx ends; its guests end with it. The client is the process
// that started this one.
func Serve(ctx context.Context, o Options, socket *os.File) error {
	conn, err := net.FileConn(socket)
	socket.Close()
	if err != nil {
		return fmt.Errorf("taking over the control socket: %w", err)
	}
	defer conn.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("taking over the control socket: it is no unix socket")
	}
	b, err := New(o)
	if err != nil {
		return refuseHello(unixConn, err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &server{
		b: b, conn: unixConn, ctx: ctx,
		guests: make(map[string]*guest), names: make(map[string]bool), past: make(map[string]bool),
	}
	// A forked child of the client may hold the socket: its end of file may never come.
	go whenParentEnds(stop)
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	err = s.read()
	stop()
	s.endAll()
	s.working.Wait()
	s.endAll() // a spawn that was under way
	s.working.Wait()
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return errors.Join(err, b.Close())
}

// refuseHello tells a client why there is no bridge, and returns the reason if it cannot.
func refuseHello(conn *net.UnixConn, reason error) error {
	_ = conn.SetDeadline(time.Now().Add(patience))
	data, err := control.ReadFrame(conn)
	if err != nil {
		return errors.Join(reason, err)
	}
	r, _ := control.Decode(data)
	body, err := json.Marshal(refusal(r.ID, reason))
	if err == nil {
		err = control.WriteFrame(conn, body, nil)
	}
	if err != nil {
		return errors.Join(reason, err)
	}
	return nil
}

// whenParentEnds calls do when the process that started this one has ended.
func whenParentEnds(do func()) {
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil || os.Getppid() != parent {
		do()
		return
	}
	defer unix.Close(fd)
	for !ended(uintptr(fd)) {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
	}
	do()
}

// read takes requests until the connection ends.
func (s *server) read() error {
	greeted := false
	for {
		data, err := control.ReadFrame(s.conn)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := control.Decode(data)
		if err == nil && greeted == (r.Op == "hello") {
			err = fmt.Errorf("%w: the first request must be hello, and no other one", control.ErrProtocol)
		}
		if err == nil && r.Op == "hello" && r.Version != control.Version {
			err = fmt.Errorf("%w: version %d is not spoken here; this bridge (%s) speaks version %d", control.ErrProtocol, r.Version, s.b.opts.Version, control.Version)
		}
		if err != nil {
			s.refuse(r.ID, err)
			if !greeted || r.ID == 0 {
				return err
			}
			continue
		}
		if r.Op == "hello" {
			greeted = true
			s.answer(r.ID, map[string]any{"version": control.Version, "supervisor": s.b.opts.Version, "pid": os.Getpid()}, nil)
			continue
		}
		s.working.Add(1)
		go func() {
			defer s.working.Done()
			if r.Op == "spawn" {
				s.spawn(r)
			} else if ok, err := s.handle(r); err != nil {
				s.refuse(r.ID, err)
			} else {
				s.answer(r.ID, ok, nil)
			}
		}()
	}
}

// spawn answers a spawn request, and then watches the guest to its end.
func (s *server) spawn(r control.Request) {
	a, err := s.asked(r)
	if err == nil {
		err = s.reserve(r.Name)
	}
	if err != nil {
		s.refuse(r.ID, err)
		return
	}
	g, outside, err := s.b.start(s.ctx, a)
	if err != nil {
		s.release(r.Name, nil)
		s.refuse(r.ID, err)
		return
	}
	s.mu.Lock()
	s.guests[g.id] = g
	s.mu.Unlock()
	s.answer(r.ID, g.announcement(), outside)
	outside.Close()
	events := s.relayEvents(g)
	s.working.Add(1)
	go func() {
		defer s.working.Done()
		<-g.ended
		exit, event := g.exit(events.finish())
		if event != nil {
			s.send(event, nil)
		}
		s.release(g.name, g)
		s.send(map[string]any{"exited": exit}, nil)
	}()
	if s.ctx.Err() != nil {
		g.ask(control.CauseClosed, "")
		_ = g.kill()
	}
}

// asked resolves the policy, where the command can be given one.
func (s *server) asked(r control.Request) (ask, error) {
	a := ask{name: r.Name}
	given := r.Policy != nil || r.PolicyText != nil || r.PolicyName != nil || r.ImportsLimited
	switch c := s.b.command; {
	case r.Rootfs != "":
		return a, errors.New("rootfs: an engine's guest has the root file system of its image")
	case c.known() && c.engine() == "podman":
		p, err := r.Resolve(control.Document.Parse)
		a.policy = &p
		return a, err
	case given:
		return a, fmt.Errorf("%w: %q cannot be given a policy, only podman run can: its container has the one that it was made with; leave policy and allowed_imports out", control.ErrPolicy, c.String())
	}
	return a, nil
}

func (s *server) reserve(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] {
		return fmt.Errorf("a guest named %q is already running: close it or choose another name", name)
	}
	s.names[name] = true
	return nil
}

func (s *server) release(name string, g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, name)
	if g != nil {
		delete(s.guests, g.id)
		s.past[g.id] = true
	}
}

// handle runs every request but hello and spawn.
func (s *server) handle(r control.Request) (any, error) {
	s.mu.Lock()
	g, past := s.guests[r.Guest], s.past[r.Guest]
	s.mu.Unlock()
	done := struct{}{}
	switch {
	case r.Op == "list":
		return s.list(), nil
	case r.Op == "reload" || r.Op == "protect":
		return nil, fmt.Errorf("%w: an engine's container keeps the policy that it was started with: spawn a new guest", control.ErrPolicy)
	case g == nil && past && slices.Contains([]string{"close", "kill", "report"}, r.Op):
		return done, nil // it crossed with the guest's own end
	case g == nil:
		return nil, fmt.Errorf("no guest %q: it has ended, or is not yours", r.Guest)
	}
	switch r.Op {
	case "connect":
		return nil, fmt.Errorf("%w: the network of an engine's container is its engine's: have it publish port %d", control.ErrPolicy, r.Port)
	case "close":
		return done, g.close(r.Timeout)
	case "kill":
		g.ask(control.CauseClosed, "")
		return done, g.kill()
	case "stats":
		return g.stats()
	case "report":
		s.send(control.Event{
			Event: control.Broken, Guest: g.id, Name: g.name, TS: float64(time.Now().UnixMicro()) / 1e6,
			Details: map[string]any{"error": printable(r.Error)},
		}, nil)
		g.ask(control.CauseSupervisor, "broken channel: "+printable(r.Error))
		return done, g.kill()
	}
	return nil, fmt.Errorf("%w: op %q is not handled", control.ErrProtocol, r.Op)
}

func (s *server) list() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := []map[string]any{}
	for _, g := range s.guests {
		entries = append(entries, map[string]any{
			"guest": g.id, "name": g.name, "policy_digest": g.digest(), "started": float64(g.started.UnixMicro()) / 1e6,
		})
	}
	return map[string]any{"guests": entries}
}

// endAll kills what runs.
func (s *server) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.guests {
		s.working.Add(1)
		go func() {
			defer s.working.Done()
			g.ask(control.CauseClosed, "")
			if err := g.kill(); err != nil {
				s.b.opts.Log.WithError(err).Error("ending a guest")
			}
		}()
	}
}

func (s *server) answer(id uint64, ok any, file *os.File) {
	s.send(map[string]any{"id": id, "ok": ok}, file)
}

func (s *server) refuse(id uint64, err error) { s.send(refusal(id, err), nil) }

// maxText bounds the text of an error, in bytes.
const maxText = 16 << 10

func refusal(id uint64, err error) any {
	text := err.Error()
	return map[string]any{"id": id, "error": map[string]string{
		"kind": control.Kind(err), "message": strings.ToValidUTF8(text[:min(len(text), maxText)], ""),
	}}
}

// send writes one message. A client that does not take it is gone, or as good as.
func (s *server) send(message any, file *os.File) {
	body, err := json.Marshal(message)
	s.writing.Lock()
	defer s.writing.Unlock()
	if err == nil {
		_ = s.conn.SetWriteDeadline(time.Now().Add(patience))
		err = control.WriteFrame(s.conn, body, file)
	}
	if err != nil && s.ctx.Err() == nil {
		s.b.opts.Log.WithError(err).Warn("telling the client")
	}
}

// announcement is the reply to the spawn that made the guest.
func (g *guest) announcement() map[string]any {
	// What an image's agent holds itself to when nobody has told it otherwise.
	limits := control.LimitsOf(policy.Limits{Message: policy.Defaults().Limits().Message, Output: policy.Defaults().Limits().Output})
	engine := g.b.command.engine()
	enforced := []map[string]string{{"rule": "container", "by": engine}}
	if g.policy != nil {
		limits = control.LimitsOf(g.policy.Limits())
		enforced = append(enforced, map[string]string{"rule": "limits", "by": engine + "'s cgroup, rlimits, mount sizes"},
			map[string]string{"rule": "policy", "by": "psi-runtime, annotation io.psi.policy"})
		if _, limited := g.policy.Imports(); limited {
			enforced = append(enforced, map[string]string{"rule": "imports", "by": "psi-runtime: masked files of the image"})
		}
	}
	return map[string]any{
		"guest": g.id, "container": g.container, "policy_digest": g.digest(), "limits": limits, "enforced": enforced,
		"relayed": true,
	}
}

func (g *guest) digest() string {
	if g.policy == nil {
		return ""
	}
	return g.policy.Digest()
}
