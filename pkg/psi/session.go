package psi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/psi-runtime/psi/pkg/channel"
)

// How much of a guest's is kept here. Beyond it nothing is read: the kernel's buffer fills,
// and the guest waits.
const (
	inboxMessages = 1024
	inboxBytes    = 16 << 20  // reading stops beyond it; the message that crosses it is kept
	outputTail    = 256 << 10 // of stdout and of stderr
	outputBacklog = 64        // output frames that wait for the writers of an ExecWait
)

// errEnded means that the channel has ended: the guest is gone, broke the protocol, or the
// handle was closed.
var errEnded = errors.New("the channel has ended")

// call is one request of ours.
type call struct {
	id        uint32
	kind      channel.Type
	reply     chan channel.Frame // takes one
	output    chan channel.Frame // of an exec that somebody listens to; else nil
	abandoned chan struct{}      // closed when nobody wants to know how it ends
	once      sync.Once
}

func (c *call) abandon() { c.once.Do(func() { close(c.abandoned) }) }

// session is one guest's channel, without knowledge of its life.
//
//	guest ──► socket ──► read ──► inbox          posts and exceptions of exec, for Recv
//	          (kernel)        ├─► call.reply     results, by id
//	                          └─► call.output    and the tails of stdout and stderr
//
// Every stage is bounded.
type session struct {
	conn    *net.UnixConn
	onFault func(string) // is told of the fault, once
	in      *channel.Reader
	out     *outbox
	inbox   chan channel.Frame
	ready   chan struct{} // closed when the guest has said that it is
	ended   chan struct{} // closed when no more frames will come
	closed  chan struct{} // closed when nobody wants them
	shut    sync.Once

	mu      sync.Mutex // guards the fields below
	held    int        // bytes in the inbox
	room    chan struct{}
	calls   map[uint32]*call // that are not answered
	order   []uint32         // their ids, oldest first
	lastID  uint32
	fault   string // the rule of the protocol that the guest broke, if it did
	isReady bool
	tails   [2][]byte // of stdout and stderr
	spoiled bool      // what is in the inbox is not wanted any more
}

// newSession begins to read. direct says that the socket's other end is the guest's own, and
// hear is called before the guest is held to a limit that may have been raised. ready is
// what the guest has said already when it was ready, nil if it was not.
func newSession(conn *net.UnixConn, message int64, direct bool, ready *channel.GuestReady, hear func(), onFault func(string)) *session {
	s := &session{
		conn: conn, onFault: onFault, inbox: make(chan channel.Frame, inboxMessages), ready: make(chan struct{}),
		ended: make(chan struct{}), closed: make(chan struct{}), room: make(chan struct{}), calls: make(map[uint32]*call),
	}
	if direct {
		s.out = newOutbox(channel.NewSocketWriter(conn), s.ended)
		s.in = channel.NewSocketReader(conn, message)
	} else {
		s.out = newOutbox(channel.NewWriter(conn), s.ended)
		s.in = channel.NewReader(bufio.NewReaderSize(conn, 64<<10), channel.FromGuest, message)
	}
	s.in.Hear(hear)
	if ready != nil {
		s.greeted(*ready)
	}
	go s.read(s.in)
	return s
}

// request sends an EXEC or CALL.
func (s *session) request(ctx context.Context, kind channel.Type, payload []byte, listen bool) (*call, error) {
	c := &call{kind: kind, reply: make(chan channel.Frame, 1), abandoned: make(chan struct{})}
	if listen {
		c.output = make(chan channel.Frame, outputBacklog)
	}
	s.mu.Lock()
	for c.id == 0 || s.calls[c.id] != nil {
		s.lastID++
		c.id = s.lastID
	}
	s.calls[c.id] = c
	s.order = append(s.order, c.id)
	s.mu.Unlock()
	if err := s.out.put(ctx, channel.Frame{Type: kind, ID: c.id, Payload: payload}); err != nil {
		s.drop(c.id)
		return nil, err
	}
	return c, nil
}

// drop takes a request out of those that wait for an answer.
func (s *session) drop(id uint32) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls[id]
	delete(s.calls, id)
	for i, other := range s.order {
		if other == id {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
	return c
}

// interrupt interrupts a request, or takes it out of the guest's queue; 0 is the one that runs.
func (s *session) interrupt(ctx context.Context, id uint32) error {
	s.mu.Lock()
	if id == 0 && len(s.order) > 0 {
		id = s.order[0]
	}
	_, open := s.calls[id]
	s.mu.Unlock()
	if !open {
		return nil
	}
	return s.out.put(ctx, channel.Frame{Type: channel.Cancel, ID: id}, channel.Frame{Type: channel.Interrupt, ID: id})
}

// abandon says that nobody waits for a request any more: what runs is interrupted, and
// what it still says is dropped.
func (s *session) abandon(c *call) {
	c.abandon()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.interrupt(now, c.id) // a guest that is so busy would not listen
}

// receive is the next post, or ERROR of an exec.
func (s *session) receive(ctx context.Context) (channel.Frame, error) {
	s.mu.Lock()
	spoiled := s.spoiled
	s.mu.Unlock()
	if spoiled {
		return channel.Frame{}, errEnded
	}
	select {
	case f := <-s.inbox:
		s.taken(f)
		return f, nil
	default:
	}
	select {
	case f := <-s.inbox:
		s.taken(f)
		return f, nil
	case <-ctx.Done():
		return channel.Frame{}, ctx.Err()
	case <-s.closed:
		return channel.Frame{}, errEnded
	case <-s.ended:
		// What came before the end can still be received.
		select {
		case f := <-s.inbox:
			return f, nil
		default:
			return channel.Frame{}, errEnded
		}
	}
}

// taken makes room for the reader.
func (s *session) taken(f channel.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held -= len(f.Payload)
	close(s.room)
	s.room = make(chan struct{})
}

// read takes in frames until the end.
func (s *session) read(r *channel.Reader) {
	defer close(s.ended)
	defer func() { _ = r.Close() }()
	for {
		f, err := r.Read()
		if err == nil {
			err = s.take(f)
		}
		if errors.Is(err, channel.ErrProtocol) {
			s.breakOff(err.Error())
		}
		if err != nil {
			return
		}
	}
}

// take files one frame. Errors: ErrProtocol, errEnded.
func (s *session) take(f channel.Frame) error {
	switch f.Type {
	case channel.GuestPost:
		return s.file(f)
	case channel.Done, channel.Result, channel.Error:
		return s.answer(f)
	case channel.Stdout, channel.Stderr:
		return s.output(f)
	case channel.Ready:
		ready, err := channel.ParseReady(f.Payload)
		if err == nil && !s.isReady {
			s.greeted(ready)
		}
		return err
	}
	var notice map[string]any
	if err := json.Unmarshal(f.Payload, &notice); err != nil || notice == nil {
		return &channel.ProtocolError{Rule: "a NOTICE frame that is no JSON object"}
	}
	return nil
}

// greeted takes what the guest says when it is ready. Once.
func (s *session) greeted(ready channel.GuestReady) {
	s.isReady = true
	if ready.Memfd {
		s.out.writer.PassMemfds()
	}
	close(s.ready)
}

// file puts a frame into the inbox, when there is room.
func (s *session) file(f channel.Frame) error {
	for {
		s.mu.Lock()
		if s.held < inboxBytes {
			s.held += len(f.Payload)
			s.mu.Unlock()
			break
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-s.closed:
			return errEnded
		}
	}
	select {
	case s.inbox <- f:
		return nil
	case <-s.closed:
		return errEnded
	}
}

// answer hands a reply to whoever waits for it.
func (s *session) answer(f channel.Frame) error {
	c := s.drop(f.ID)
	ofExec := f.Type == channel.Done || f.Flags&channel.FlagExec != 0
	switch {
	case c == nil:
		return &channel.ProtocolError{Rule: fmt.Sprintf("an answer to request %d, which is not open", f.ID)}
	case ofExec != (c.kind == channel.Exec):
		return &channel.ProtocolError{Rule: fmt.Sprintf("an answer of type %d to request %d of another kind", f.Type, f.ID)}
	}
	if ofExec && f.Type == channel.Error {
		select {
		case <-c.abandoned:
		default:
			if err := s.file(f); err != nil {
				return err
			}
		}
	}
	c.reply <- f
	return nil
}

// output keeps the tail, and hands the frame to an ExecWait that listens.
func (s *session) output(f channel.Frame) error {
	s.mu.Lock()
	tail := &s.tails[f.Type-channel.Stdout]
	*tail = append(*tail, f.Payload...)
	if extra := len(*tail) - outputTail; extra > 0 {
		*tail = append((*tail)[:0], (*tail)[extra:]...)
	}
	c := s.calls[f.ID]
	s.mu.Unlock()
	if c == nil || c.output == nil {
		return nil
	}
	select {
	case c.output <- f:
	case <-c.abandoned:
	case <-s.closed:
		return errEnded
	}
	return nil
}

// breakOff says that the guest broke a rule: nothing more is taken from it. Its channel
// stays open: its supervisor is to hear of it, and kill it, before it ends by itself.
func (s *session) breakOff(fault string) {
	s.mu.Lock()
	first := s.fault == ""
	if first {
		s.fault = fault
	}
	s.mu.Unlock()
	if first {
		s.onFault(fault)
	}
}

// spoil is breakOff for what was found in a value: what came after it is dropped.
func (s *session) spoil(fault string) {
	s.mu.Lock()
	s.spoiled = true
	s.mu.Unlock()
	s.breakOff(fault)
}

// faulted is the rule that the guest broke, "" if none.
func (s *session) faulted() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// hangUp ends the channel; what was received before can still be taken.
func (s *session) hangUp() {
	_ = s.conn.CloseRead()
	_ = s.conn.CloseWrite()
}

// close ends everything and returns when neither goroutine runs any more.
func (s *session) close() {
	s.shut.Do(func() { close(s.closed) })
	_ = s.conn.Close()
	<-s.ended
	<-s.out.done
}
