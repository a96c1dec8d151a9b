package attend

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A guest is held back by its cpu limit from the moment at which it has used its share of
// a period, and the kernel counts that at the period's end. Nothing wakes a reader for it
// (a pressure trigger that is quick enough needs CAP_SYS_RESOURCE), and reading a thousand
// counters all the time is not free. So there are two paces:
//
//	each 80 ms   the cpu time of all guests, as one number: that of the group above them.
//	             Only if it has grown is a guest's own looked at.
//	each 5 ms    the counter of each guest that has just used a good part of its share,
//	             until it has been still for longer than a period
//
// An occurrence so is told within some milliseconds of being counted, and an idle guest
// costs nothing.
const (
	throttleLook = 80 * time.Millisecond
	throttleTick = 5 * time.Millisecond
	// maxHot is how many guests are looked at in one tick: of more, each waits its turn.
	maxHot = 16
	// stirring is less cpu time than any guest can be held back for: the kernel hands shares
	// out in slices, a millisecond of which a processor may keep.
	stirring = time.Millisecond
	// hotFor is how long a guest is looked at after it has used much: a period, and one more
	// look at what it uses.
	hotFor = cfsPeriod + throttleLook + 2*throttleTick
	// throttleQuiet ends an occurrence: eight quota periods without a throttled one.
	// A guest that computes without pause is throttled once per period, so shorter
	// windows would cut one busy stretch into many events.
	// So would those in which a busy machine does not let the guest run at all.
	throttleQuiet = 8 * cfsPeriod
)

// throttlePhase turns the growing counter nr_throttled into occurrences. One
// occurrence is a stretch of time in which the counter grows at least once every
// throttleQuiet; its first growth is the event.
type throttlePhase struct {
	count uint64
	last  time.Time // when the counter was last seen to grow; zero before that
}

// observe takes a reading and reports whether a new occurrence began with it.
func (t *throttlePhase) observe(now time.Time, count uint64) bool {
	if count <= t.count {
		return false
	}
	began := !t.lasts(now)
	t.count, t.last = count, now
	return began
}

// lasts reports whether an occurrence is not over yet.
func (t *throttlePhase) lasts(now time.Time) bool {
	return !t.last.IsZero() && now.Sub(t.last) <= throttleQuiet
}

// Throttles finds out when the guests of a process are held back by their cpu limits.
// Without guests it does nothing and needs no end.
type Throttles struct {
	mu     sync.Mutex // guards the fields below and those of the guests; held while one is told
	guests map[*throttled]bool
	stop   context.CancelFunc // of the goroutine; nil without guests
}

// throttled is one guest.
type throttled struct {
	c     Container
	quota atomic.Int64 // cpu time of a period, in ns
	told  func(now time.Time, count uint64)
	phase throttlePhase
	used  time.Duration // cpu time at the last look
	seen  time.Duration // and that of the group above then
	hot   time.Time     // until when its counter is looked at in each tick
}

// NewThrottles returns one for the guests of this process.
func NewThrottles() *Throttles {
	return &Throttles{guests: make(map[*throttled]bool)}
}

// watch has told called with each occurrence from now on; it must not block. What was
// counted before is nobody's event: it was the container's own start.
func (t *Throttles) watch(c Container, quota float64, told func(now time.Time, count uint64)) (*throttled, error) {
	count, err := c.Throttled()
	if err != nil {
		return nil, err
	}
	g := &throttled{c: c, told: told, phase: throttlePhase{count: count}}
	g.setQuota(quota)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.guests[g] = true
	if t.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		t.stop = stop
		go t.run(ctx)
	}
	return g, nil
}

// setQuota is for a guest whose limit, in cores, has changed.
func (g *throttled) setQuota(quota float64) { g.quota.Store(int64(quota * float64(cfsPeriod))) }

// forget returns when the guest is told nothing more.
func (t *Throttles) forget(g *throttled) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.guests, g)
	if len(t.guests) == 0 && t.stop != nil {
		t.stop()
		t.stop = nil
	}
}

func (t *Throttles) run(ctx context.Context) {
	timer := time.NewTimer(throttleLook)
	defer timer.Stop()
	look := time.Now().Add(throttleLook)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-timer.C:
			t.mu.Lock()
			if ctx.Err() != nil {
				t.mu.Unlock()
				return
			}
			if !now.Before(look) {
				t.look(now)
				look = now.Add(throttleLook)
			}
			next := time.Until(look)
			if t.tick(now) {
				next = min(next, throttleTick)
			}
			t.mu.Unlock()
			timer.Reset(next)
		}
	}
}

// look finds the guests that have used cpu time.
func (t *Throttles) look(now time.Time) {
	above := make(map[string]time.Duration)
	for g := range t.guests {
		if g.phase.lasts(now) {
			g.count(now)
			continue
		}
		var total time.Duration // 0 is no figure: the container's start alone costs some
		if len(t.guests) > 1 {
			group := g.c.ParentGroup()
			if _, known := above[group]; !known {
				above[group], _ = g.c.ParentCPU()
			}
			total = above[group]
		}
		if total != 0 && total-g.seen < stirring {
			continue
		}
		g.seen = total
		g.look(now)
	}
}

// look reads what the guest has used.
func (g *throttled) look(now time.Time) {
	used, err := g.c.CPU()
	share := time.Duration(g.quota.Load())
	if err != nil || share <= 0 {
		return
	}
	delta := used - g.used
	g.used = used
	switch {
	case used == 0: // there is no such figure on this host
		g.count(now)
	case delta >= share/4:
		g.hot = now.Add(hotFor)
	case delta >= stirring: // on many processors it may have been held back for less
		g.count(now)
	}
}

// tick looks at the counters of the hot guests, and reports whether there are any.
func (t *Throttles) tick(now time.Time) bool {
	var hot []*throttled
	for g := range t.guests {
		if now.Before(g.hot) && !g.phase.lasts(now) {
			hot = append(hot, g)
		}
	}
	for _, g := range hot[:min(len(hot), maxHot)] { // in no order
		g.count(now)
	}
	return len(hot) > 0
}

// count looks at a guest's counter.
func (g *throttled) count(now time.Time) {
	count, err := g.c.Throttled()
	if err == nil && g.phase.observe(now, count) {
		g.told(now, count)
	}
}
