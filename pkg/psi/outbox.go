package psi

import (
	"context"
	"sync"

	"github.com/psi-runtime/psi/pkg/channel"
)

// outboxBytes may wait for a guest that does not read; one frame alone may be larger.
const outboxBytes = 1 << 20

// outbox is what is on its way to a guest. A write could be stopped only in the middle of
// a frame, which would end the channel; so one goroutine writes, and who sends waits here.
type outbox struct {
	writer *channel.Writer
	ended  <-chan struct{} // of the session: nothing more will be sent
	wake   chan struct{}   // holds one: there is something to write
	done   chan struct{}   // closed when the goroutine has ended

	mu     sync.Mutex // guards the fields below
	queue  []channel.Frame
	held   int
	room   chan struct{} // closed when held has shrunk
	failed bool
}

func newOutbox(writer *channel.Writer, ended <-chan struct{}) *outbox {
	o := &outbox{
		writer: writer, ended: ended, wake: make(chan struct{}, 1), done: make(chan struct{}),
		room: make(chan struct{}),
	}
	go o.run()
	return o
}

// put queues frames, which stay together, when there is room. Errors: the context's, or
// errEnded.
func (o *outbox) put(ctx context.Context, frames ...channel.Frame) error {
	size := 0
	for _, f := range frames {
		size += channel.HeaderSize + len(f.Payload)
	}
	for {
		o.mu.Lock()
		switch {
		case o.failed:
			o.mu.Unlock()
			return errEnded
		case o.held == 0 || o.held+size <= outboxBytes:
			o.queue = append(o.queue, frames...)
			o.held += size
			o.mu.Unlock()
			select {
			case o.wake <- struct{}{}:
			default:
			}
			return nil
		}
		room := o.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-o.done:
			return errEnded
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run writes what is queued until the channel ends.
func (o *outbox) run() {
	defer close(o.done)
	defer func() {
		o.mu.Lock()
		o.failed, o.queue = true, nil
		o.mu.Unlock()
	}()
	for {
		select {
		case <-o.wake:
		case <-o.ended:
			return
		}
		o.mu.Lock()
		queue := o.queue
		o.queue = nil
		o.mu.Unlock()
		for _, f := range queue {
			if o.writer.Write(f) != nil {
				return // the guest is gone; whoever waits learns it from the reader
			}
			o.mu.Lock()
			o.held -= channel.HeaderSize + len(f.Payload)
			close(o.room)
			o.room = make(chan struct{})
			o.mu.Unlock()
		}
	}
}
