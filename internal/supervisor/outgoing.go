package supervisor

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// answer tells the client what it asked for. It may wait until the client reads.
func (c *client) answer(id uint64, ok any, file *os.File) {
	c.send(struct {
		ID uint64 `json:"id"`
		OK any    `json:"ok"`
	}{id, ok}, file, true)
}

// refuse is answer for an error. Who reads the connection must not wait.
func (c *client) refuse(id uint64, err error, mayWait bool) {
	type failure struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	}
	c.log.WithError(err).WithField("request", id).Debug("request refused")
	c.send(struct {
		ID    uint64  `json:"id"`
		Error failure `json:"error"`
	}{id, failure{control.Kind(err), clip(err.Error(), maxMessage)}}, nil, mayWait)
}

// send queues one message, or writes it here and now if nothing is before it and this
// goroutine may wait. A client whose queue is full is dropped: waiting for it would let it
// hold up the supervisor.
func (c *client) send(what any, file *os.File, mayWait bool) {
	body, err := json.Marshal(what)
	if err != nil {
		c.log.WithError(err).Error("a message could not be encoded")
		closeFile(file)
		return
	}
	c.mu.Lock()
	if c.dropped {
		c.mu.Unlock()
		closeFile(file)
		return
	}
	m := message{body, file}
	if mayWait && c.unwritten == 0 {
		c.unwritten++
		c.writing.Lock() // at once: nobody writes
		c.mu.Unlock()
		c.writeAll(m)
		return
	}
	full := !c.queueLocked(m) || c.files > maxFiles
	c.mu.Unlock()
	if full {
		c.drop(errors.New("the client does not read: too many messages, or descriptors, are waiting"))
	}
}

// queueLocked puts a message where write finds it, if there is room. It takes the file.
func (c *client) queueLocked(m message) bool {
	select {
	case c.out <- m:
		c.unwritten++
		if m.file != nil {
			c.files++
		}
		return true
	default:
		closeFile(m.file)
		return false
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
	return !c.dropped && len(c.out) < queueLength/2 && c.queueLocked(message{body: body})
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
	for m := range c.out {
		together, files, size := []message{m}, 0, len(m.body)
		for size < maxTogether && len(c.out) > 0 {
			m := <-c.out // nobody else takes any
			together, size = append(together, m), size+len(m.body)
		}
		for _, m := range together {
			if m.file != nil {
				files++
			}
		}
		c.writing.Lock()
		c.writeAll(together...)
		c.mu.Lock()
		c.files -= files
		c.mu.Unlock()
	}
	c.writing.Lock() // the last one may be written elsewhere
	defer c.writing.Unlock()
	_ = c.conn.Close()
}

// writeAll sends messages and releases writing.
func (c *client) writeAll(messages ...message) {
	frames := c.frames[:0]
	flush := func() {
		if len(frames) > 0 && c.failed == nil {
			_, c.failed = c.conn.Write(frames)
		}
		frames = frames[:0]
	}
	before := c.failed
	for _, m := range messages {
		if m.file == nil && len(m.body) <= control.MaxFrame {
			frames = control.AppendFrame(frames, m.body)
			continue
		}
		if flush(); c.failed == nil {
			c.failed = control.WriteFrame(c.conn, m.body, m.file)
		}
	}
	flush()
	if c.frames = frames; cap(frames) > 2*maxTogether {
		c.frames = nil
	}
	if c.failed != nil && before == nil {
		go c.drop(c.failed)
	}
	c.writing.Unlock()
	for _, m := range messages {
		closeFile(m.file)
	}
	c.mu.Lock()
	c.unwritten -= len(messages)
	c.mu.Unlock()
}
