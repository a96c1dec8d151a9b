package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/psi-runtime/psi/internal/control"
)

const (
	// queueLength bounds what waits for a client that does not read. It holds more
	// than every reply a client can have outstanding and a burst of events.
	queueLength = 1024
	// maxInFlight bounds the requests of one client that run at the same time. The
	// next one is refused: not reading it would hide the end of the connection.
	maxInFlight = 512
	// maxTogether is about how much is sent at once, in bytes.
	maxTogether = 64 << 10
	// farewell is how long a connection that ends may take to read what was queued.
	farewell = time.Second
	// greeting is how long a client may take to say hello.
	greeting = 10 * time.Second
	// maxFiles is how many descriptors may wait for a client that does not read.
	maxFiles = 128
	// maxEnded is how many ended guests a connection remembers.
	maxEnded = 1024
)

// message is one frame on its way to a client; file is closed once it is sent or not.
type message struct {
	body []byte
	file *os.File
}

// client is one connection. Its guests end with it.
type client struct {
	s     *Supervisor
	conn  *net.UnixConn
	peer  peer
	log   logrus.FieldLogger
	watch atomic.Bool // also wants the events of its uid's other connections

	flying  chan struct{} // a slot per running request
	working sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and sending on out against closing it
	out     chan message
	files   int // descriptors in out
	dropped bool
	token   []byte   // digest of what a reload of these guests needs; nil without
	ended   []string // ids of guests that have ended, oldest first
}

// serve speaks with the client until either side ends it. When it returns, no
// request of the client runs any more and nothing is sent to it.
func (c *client) serve() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	stop := c.s.watchProcess(c.peer.process, func() { c.drop(errors.New("the client's process has ended")) })
	c.drop(c.read())
	stop()
	mine := func(g *guest) bool { return g.client == c }
	c.s.endGuests(mine, control.CauseClosed, "")
	c.working.Wait()
	// A spawn that was under way when the connection ended undid itself or is in
	// the table by now.
	c.s.endGuests(mine, control.CauseClosed, "")
	<-written
}

// read takes requests until the connection ends and says why it did.
func (c *client) read() error {
	greeted := false
	_ = c.conn.SetReadDeadline(time.Now().Add(greeting))
	for {
		data, err := control.ReadFrame(c.conn)
		if err != nil {
			if !errors.Is(err, errProtocol) {
				return err
			}
			c.refuse(0, err)
			return err
		}
		r, err := control.Decode(data)
		if err == nil && !greeted {
			err = c.hello(r)
			greeted = err == nil
			if greeted {
				c.waitForever()
				continue
			}
		} else if err == nil && r.Op == "hello" {
			err = fmt.Errorf("%w: hello was said before", errProtocol)
		}
		if err != nil {
			c.refuse(r.ID, err)
			if !greeted || r.ID == 0 {
				return err
			}
			continue
		}
		c.start(r)
	}
}

// waitForever lifts the deadline of the hello, unless the connection was dropped.
func (c *client) waitForever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dropped {
		_ = c.conn.SetReadDeadline(time.Time{})
	}
}

// hello answers the first request.
func (c *client) hello(r control.Request) error {
	if r.Op != "hello" {
		return fmt.Errorf("%w: the first request must be hello, not %s", errProtocol, r.Op)
	}
	if r.Version != control.Version {
		return fmt.Errorf("%w: version %d is not spoken here; this supervisor (%s) speaks version %d",
			errProtocol, r.Version, c.s.opts.Version, control.Version)
	}
	c.watch.Store(r.Watch)
	c.s.warmth.extend()
	c.log.WithField("client", r.Client).Debug("client said hello")
	c.answer(r.ID, map[string]any{
		"version": control.Version, "supervisor": c.s.opts.Version, "pid": c.s.opts.PID,
	}, nil)
	return nil
}

// start runs a request beside the others.
func (c *client) start(r control.Request) {
	select {
	case c.flying <- struct{}{}:
	default:
		c.refuse(r.ID, fmt.Errorf("%w: %d requests of this client are already running", errUnavailable, maxInFlight))
		return
	}
	c.working.Add(1)
	go func() {
		defer func() { c.working.Done(); <-c.flying }()
		switch r.Op {
		case "spawn":
			c.spawn(r)
			return
		case "connect":
			c.connect(r)
			return
		}
		ok, err := c.s.handle(c, r)
		if err != nil {
			c.refuse(r.ID, err)
			return
		}
		c.answer(r.ID, ok, nil)
	}()
}

// spawn answers a spawn request; what the guest had to say before it was announced
// is said right after.
func (c *client) spawn(r control.Request) {
	g, channel, err := c.s.spawn(c, r)
	if err != nil {
		c.refuse(r.ID, err)
		return
	}
	c.answer(r.ID, g.announcement(), channel)
	g.announce()
}

func (c *client) answer(id uint64, ok any, file *os.File) {
	c.send(struct {
		ID uint64 `json:"id"`
		OK any    `json:"ok"`
	}{id, ok}, file)
}

func (c *client) refuse(id uint64, err error) {
	type failure struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	}
	c.log.WithError(err).WithField("request", id).Debug("request refused")
	c.send(struct {
		ID    uint64  `json:"id"`
		Error failure `json:"error"`
	}{id, failure{control.Kind(err), clip(err.Error(), maxMessage)}}, nil)
}

// send queues one message. A client whose queue is full is dropped: waiting for it
// would let it hold up the supervisor.
func (c *client) send(what any, file *os.File) {
	body, err := json.Marshal(what)
	c.mu.Lock()
	full := false
	if err == nil && !c.dropped {
		select {
		case c.out <- message{body, file}:
			if file != nil {
				c.files++
			}
			file, full = nil, c.files > maxFiles
		default:
			full = true
		}
	}
	c.mu.Unlock()
	if file != nil {
		_ = file.Close()
	}
	if err != nil {
		c.log.WithError(err).Error("a message could not be encoded")
	}
	if full {
		c.drop(errors.New("the client does not read: too many messages, or descriptors, are waiting"))
	}
}

// offer queues a message that the client can do without, unless half of the queue is
// taken: the other half is for what it cannot.
func (c *client) offer(what any) bool {
	body, err := json.Marshal(what)
	if err != nil {
		c.log.WithError(err).Error("a message could not be encoded")
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped || len(c.out) >= queueLength/2 {
		return false
	}
	c.out <- message{body: body}
	return true
}

// awaitRoom waits a moment for a client that is being told much at once, so that it is
// not dropped for that.
func (c *client) awaitRoom() {
	for end := time.Now().Add(farewell); len(c.out) > queueLength/2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// write sends what is queued, as much at once as is there; it ends after drop.
func (c *client) write() {
	defer c.conn.Close()
	var together []byte
	flush := func() (err error) {
		if len(together) > 0 {
			_, err = c.conn.Write(together)
			together = together[:0]
		}
		return err
	}
	failed := false
	for m := range c.out {
		var err error
		switch {
		case failed:
		case m.file == nil && len(m.body) <= control.MaxFrame:
			together = control.AppendFrame(together, m.body)
			if len(c.out) == 0 || len(together) >= maxTogether {
				err = flush()
			}
		default:
			if err = flush(); err == nil {
				err = control.WriteFrame(c.conn, m.body, m.file)
			}
		}
		if err != nil {
			failed = true
			go c.drop(err)
		}
		if m.file != nil {
			_ = m.file.Close()
			c.mu.Lock()
			c.files--
			c.mu.Unlock()
		}
	}
}

// drop ends the connection; the first reason counts.
func (c *client) drop(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped {
		return
	}
	c.dropped = true
	close(c.out)
	_ = c.conn.SetReadDeadline(time.Now())
	_ = c.conn.SetWriteDeadline(time.Now().Add(farewell))
	if errors.Is(reason, io.EOF) {
		c.log.Debug("client disconnected")
	} else {
		c.log.WithError(reason).Warn("client dropped")
	}
}

// gone says whether the connection has ended.
func (c *client) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// remember notes an ended guest, so that closing it once more is no error.
func (c *client) remember(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ended) == maxEnded {
		c.ended = c.ended[1:]
	}
	c.ended = append(c.ended, id)
}

func (c *client) remembers(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ended {
		if e == id {
			return true
		}
	}
	return false
}
