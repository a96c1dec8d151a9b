package supervisor

import (
	"bufio"
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

	writing sync.Mutex // held by who writes; taken while mu is held only if unwritten is 0
	failed  error      // of writing, which guards it
	frames  []byte     // of what is sent together; writing guards it

	mu        sync.Mutex // guards the fields below, and sending on out against closing it
	out       chan message
	unwritten int // messages in out, or being written
	files     int // descriptors in out
	dropped   bool
	token     []byte   // digest of what a reload of these guests needs; nil without
	ended     []string // ids of guests that have ended, oldest first
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
	in := bufio.NewReader(c.conn)
	err := c.greet(in)
	if err == nil {
		end := make(chan error, 1)
		go c.read(in, end)
		err = <-end
	}
	c.drop(err)
	stop()
	mine := func(g *guest) bool { return g.client == c }
	c.s.endGuests(mine, control.CauseClosed, "")
	c.working.Wait()
	// A spawn that was under way when the connection ended undid itself or is in
	// the table by now.
	c.s.endGuests(mine, control.CauseClosed, "")
	<-written
}

// greet takes the first request, which has to be hello.
func (c *client) greet(in io.Reader) error {
	_ = c.conn.SetReadDeadline(time.Now().Add(greeting))
	data, err := c.frame(in)
	if err != nil {
		return err
	}
	r, err := control.Decode(data)
	if err == nil {
		err = c.hello(r)
	}
	if err != nil {
		c.refuse(r.ID, err, false)
		return err
	}
	c.waitForever()
	return nil
}

// read takes requests until the connection ends, and says why it did. Each is handled by the
// goroutine that has read it, so that what is wanted soon need not wait until somebody is woken;
// before anything that takes long another one reads on.
func (c *client) read(in io.Reader, end chan<- error) {
	growStack()
	for {
		data, err := c.frame(in)
		if err != nil {
			end <- err
			return
		}
		r, err := control.Decode(data)
		if err == nil && r.Op == "hello" {
			err = fmt.Errorf("%w: hello was said before", errProtocol)
		}
		if err == nil {
			err = c.begin()
		}
		if err == nil {
			replaced := false
			c.handle(r, sync.OnceFunc(func() { replaced = true; go c.read(in, end) }))
			if replaced {
				return
			}
			continue
		}
		c.refuse(r.ID, err, false)
		if r.ID == 0 {
			end <- err
			return
		}
	}
}

// frame reads one.
func (c *client) frame(in io.Reader) ([]byte, error) {
	data, err := control.ReadFrame(in)
	if errors.Is(err, errProtocol) {
		c.refuse(0, err, false)
	}
	return data, err
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

// begin counts a request that runs; handle ends it.
func (c *client) begin() error {
	select {
	case c.flying <- struct{}{}:
		c.working.Add(1)
		return nil
	default:
		return fmt.Errorf("%w: %d requests of this client are already running", errUnavailable, maxInFlight)
	}
}

// handle answers a request. It calls readOn before it does anything that may take long.
func (c *client) handle(r control.Request, readOn func()) {
	defer func() { c.working.Done(); <-c.flying }()
	if r.Op == "spawn" {
		c.spawn(r, readOn)
		return
	}
	readOn()
	switch r.Op {
	case "connect":
		c.connect(r)
		return
	}
	ok, err := c.s.handle(c, r)
	if err != nil {
		c.refuse(r.ID, err, true)
		return
	}
	c.answer(r.ID, ok, nil)
}

// spawn answers a spawn request; what the guest had to say before it was announced
// is said right after.
func (c *client) spawn(r control.Request, readOn func()) {
	defer c.s.pool.refill() // once that is answered
	g, channel, err := c.s.spawn(c, r, readOn)
	if err != nil {
		c.refuse(r.ID, err, true)
		return
	}
	c.answer(r.ID, g.announcement(), channel)
	g.announce()
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
