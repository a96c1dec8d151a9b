package psi

import (
	"context"
	"sync"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// The types of event.
const (
	MemKill       = control.MemKill     // killed for memory; details: limit, oom_kills
	CPUThrottle   = control.CPUThrottle // held back, or killed, for cpu time; details: reason, limit, observed
	PolicyHotload = control.Hotload     // has another policy; details: policy_digest, former_digest, limits
	BrokerError   = control.Broken      // broke the rules of its channel; details: error
	Denied        = control.Denied      // was refused something; details: see docs/policy.md
)

// Event is something that happened to a sandbox.
type Event struct {
	Time    time.Time
	Sandbox *Sandbox
	Type    string
	Details map[string]any
	Dropped int // events before this one that the watcher was too slow for
}

// backlog is how many events wait for a watcher.
const backlog = 256

// watcher is one call of Events.
type watcher struct {
	events chan Event
	forget func() bool // takes back what waits for the context's end

	mu      sync.Mutex // guards the fields below, and sending against closing
	dropped int
	ended   bool
}

// Events returns what happens to this client's sandboxes from now on, until ctx or the
// client ends. Who does not read misses what does not fit in a backlog of 256.
func (c *Client) Events(ctx context.Context) <-chan Event {
	w := &watcher{events: make(chan Event, backlog)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers == nil {
		w.end()
		return w.events
	}
	c.watchers[w] = true
	w.forget = context.AfterFunc(ctx, func() {
		c.mu.Lock()
		delete(c.watchers, w)
		c.mu.Unlock()
		w.end()
	})
	return w.events
}

func (c *Client) publish(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watchers {
		w.tell(e)
	}
}

func (w *watcher) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	e.Dropped = w.dropped
	select {
	case w.events <- e:
		w.dropped = 0
	default:
		w.dropped++
	}
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.ended = true
		close(w.events)
		if w.forget != nil {
			w.forget()
		}
	}
}
