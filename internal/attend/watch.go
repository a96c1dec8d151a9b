package attend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/psi-runtime/psi/pkg/policy"
)

// maxReadFailures is how many times in a row the cgroup's cpu figure may be
// unreadable before the guest is ended: a budget that nobody can check is no budget.
const maxReadFailures = 20

var errNoFigure = errors.New("the cgroup shows none")

// clocks is everything the one goroutine of an Attendant waits for.
type clocks struct {
	mu       sync.Mutex
	ended    bool
	started  time.Time // of the guest
	limits   policy.Limits
	cpu      cpuClock
	failures int
	oom      <-chan uint64
	cpuTimer *time.Timer
	wall     *time.Timer
}

// begin takes the first readings and arms the timers.
func (k *clocks) begin(ctx context.Context, c Container, l policy.Limits, started time.Time) (err error) {
	if k.oom, err = c.OOMEvents(ctx); err != nil {
		return fmt.Errorf("watching the guest's memory events: %w", err)
	}
	if l.CPUTime > 0 {
		if used, err := c.CPU(); err != nil || used == 0 {
			return noFigure(err)
		}
	}
	k.cpuTimer, k.wall = time.NewTimer(0), time.NewTimer(0)
	return k.set(l, started)
}

func noFigure(err error) error {
	return fmt.Errorf("cpu_ms cannot be enforced: the guest's cpu time cannot be read (is the cpuacct or cpu cgroup controller mounted?): %w", errors.Join(err, errNoFigure))
}

// set arms the timers for these limits, of a guest that was started then; the zero time
// leaves that as it is.
func (k *clocks) set(l policy.Limits, started time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return ErrClosed
	}
	if !started.IsZero() {
		k.started = started
	}
	k.limits = l
	k.cpu = newCPUClock(l.CPUTime, l.CPU)
	k.wall.Stop()
	if l.Wall > 0 {
		k.wall.Reset(time.Until(k.started.Add(l.Wall)))
	}
	k.cpuTimer.Stop()
	if l.CPUTime > 0 {
		k.cpuTimer.Reset(0)
	}
	return nil
}

func (k *clocks) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.cpuTimer.Stop()
	k.wall.Stop()
}

// run is the clock goroutine.
func (a *Attendant) run(ctx context.Context) {
	defer close(a.done)
	k := &a.clocks
	defer k.end()
	for {
		select {
		case <-ctx.Done():
			return
		case kills, open := <-k.oom:
			if !open {
				k.oom = nil
			} else {
				a.endForMemory(kills)
			}
		case <-k.cpuTimer.C:
			a.lookAtCPU()
		case <-k.wall.C:
			a.lookAtWall()
		}
	}
}

// endForMemory ends the whole guest: what is left of it after the kernel took one of
// its processes is in no state that anybody designed.
func (a *Attendant) endForMemory(kills uint64) {
	limit := a.policy.Load().Limits().Mem
	a.end(CauseOOM, float64(limit), float64(limit), &Event{Type: MemKill, Details: map[string]any{
		"limit": limit, "oom_kills": kills,
	}})
}

// lastLook runs after the clock goroutine has ended.
func (a *Attendant) lastLook() {
	if kills, err := a.c.OOMKills(); err == nil && kills > 0 {
		a.endForMemory(kills)
	}
}

func (a *Attendant) lookAtCPU() {
	used, err := a.c.CPU()
	k := &a.clocks
	k.mu.Lock()
	limit := k.limits.CPUTime
	switch {
	case limit == 0: // since a moment ago
	case err != nil || used == 0: // the container's start alone costs some: 0 is no reading
		if k.failures++; k.failures >= maxReadFailures {
			defer a.end(CauseUnattended, 0, 0, nil)
			break
		}
		k.cpuTimer.Reset(minPoll)
	default:
		k.failures = 0
		if used -= a.Base(); !k.cpu.exceeded(used) {
			k.cpuTimer.Reset(k.cpu.sleep(used))
			break
		}
		limit, observed := milliseconds(limit), milliseconds(used)
		defer a.end(CauseCPU, limit, observed, &Event{Type: CPUThrottle, Details: map[string]any{
			"reason": "cpu_ms", "limit": limit, "observed": observed,
		}})
	}
	k.mu.Unlock()
}

func (a *Attendant) lookAtWall() {
	k := &a.clocks
	k.mu.Lock()
	limit, lived := k.limits.Wall, time.Since(k.started)
	k.mu.Unlock()
	if limit > 0 && lived >= limit { // else it was changed a moment ago
		a.end(CauseWall, milliseconds(limit), milliseconds(lived), nil)
	}
}
