package supervisor

import (
	"errors"
	"sync"
	"time"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// PoolOptions say how many guests wait, made, for somebody to want one.
type PoolOptions struct {
	Size int     `json:"size"`       // blanks of each kind that is in use; 0: none, each guest is made when it is wanted
	CPU  float64 `json:"refill_cpu"` // processors that making them may take, 0.5 is half of one; 0 is DefaultPoolCPU
}

// DefaultPoolCPU is how much of a processor goes into making guests ahead.
const DefaultPoolCPU = 0.5

const (
	// poolIdle is how long blanks of a kind wait for somebody before they are ended.
	poolIdle = time.Minute
	// poolPause is how long after one was wanted no other is made: the guest that was just
	// given away begins its work meanwhile, and would share the processors with that.
	poolPause = 5 * time.Millisecond
	// maxKinds is how many kinds have blanks at a time; the one that was wanted longest ago
	// gives way.
	maxKinds = 8
)

// pool keeps blanks of the kinds that are wanted. Blanks begin to be made when a kind is
// wanted for the first time, in the background.
type pool struct {
	s    *Supervisor
	opts PoolOptions

	mu      sync.Mutex // guards the fields below
	shelves map[string]*shelf
	closed  bool
	filling bool           // the filler runs
	wake    chan struct{}  // tells it that there is something to do
	filler  sync.WaitGroup // of it
}

// shelf is the blanks of one kind.
type shelf struct {
	kind   kind
	client peer // who wanted one last
	ready  []*guest
	wanted time.Time // last
	shows  bool      // one was wanted that shows files of its client
}

func newPool(s *Supervisor, o PoolOptions) *pool {
	if o.CPU <= 0 {
		o.CPU = DefaultPoolCPU
	}
	return &pool{s: s, opts: o, shelves: make(map[string]*shelf), wake: make(chan struct{}, 1)}
}

// take gives a blank of a kind away: one that waits, or else one that is made now, after a call
// of slow. shows says whether it is to show files of its client.
func (p *pool) take(k kind, client peer, shows bool, slow func()) (*guest, error) {
	for {
		g := p.pick(k, client, shows)
		if g == nil {
			break
		}
		if g.kind.reaches != k.reaches {
			slow()
		}
		if !g.hasEnded() {
			return g, nil
		}
		slow()
		_ = g.discard()
	}
	slow()
	return p.s.makeBlank(k)
}

// pick takes a blank from its shelf, if there is one, and notes that one was wanted.
func (p *pool) pick(k kind, client peer, shows bool) (g *guest) {
	if p.opts.Size == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	s := p.shelves[k.key()]
	if s == nil {
		s = &shelf{kind: k}
		p.shelves[k.key()] = s
	}
	s.client, s.wanted, s.shows = client, time.Now(), s.shows || shows
	if g = s.pop(); g == nil && k.reaches {
		k.reaches = false
		g = p.shelves[k.key()].pop()
	}
	return g
}

func (s *shelf) pop() (g *guest) {
	if s != nil && len(s.ready) > 0 {
		last := len(s.ready) - 1
		g, s.ready = s.ready[last], s.ready[:last]
	}
	return g
}

// refill has blanks made in the place of those that were taken.
func (p *pool) refill() {
	if p.opts.Size == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.filling && !p.closed {
		p.filling = true
		p.filler.Add(1)
		go p.fill()
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// fill makes blanks, one at a time, and ends those that nobody wants any more. It ends when
// there is nothing to keep.
func (p *pool) fill() {
	defer p.filler.Done()
	for {
		for _, g := range p.stale() {
			_ = g.discard()
		}
		s, wait := p.next()
		switch {
		case s == nil && wait == 0:
			return
		case s == nil:
			select {
			case <-p.wake:
			case <-time.After(wait):
			}
		default:
			began := time.Now()
			if err := p.add(s); err != nil {
				if !p.s.isClosing() {
					p.s.opts.Log.WithError(err).Error("making a guest ahead")
				}
				p.drop(s)
			}
			time.Sleep(time.Duration(float64(time.Since(began)) * (1/p.opts.CPU - 1)))
		}
	}
}

// next is the shelf to fill, or how long there is none; neither ends the filler.
func (p *pool) next() (lacking *shelf, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.shelves) == 0 {
		p.filling = false
		return nil, 0
	}
	wait = poolIdle
	for _, s := range p.shelves {
		wait = min(wait, max(time.Until(s.wanted.Add(poolIdle)), time.Millisecond))
		if len(s.ready) == p.opts.Size {
			continue
		}
		if pause := time.Until(s.wanted.Add(poolPause)); pause > 0 {
			wait = min(wait, pause)
		} else if lacking == nil || s.wanted.After(lacking.wanted) {
			lacking = s
		}
	}
	return lacking, wait
}

// stale takes shelves away that nobody has wanted anything from, and returns what was on them.
func (p *pool) stale() (old []*guest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var oldest *shelf
		for _, s := range p.shelves {
			if oldest == nil || s.wanted.Before(oldest.wanted) {
				oldest = s
			}
		}
		if oldest == nil || len(p.shelves) <= maxKinds && time.Since(oldest.wanted) < poolIdle {
			return old
		}
		old = append(old, oldest.ready...)
		delete(p.shelves, oldest.kind.key())
	}
}

// add puts one more blank on a shelf.
func (p *pool) add(s *shelf) error {
	p.mu.Lock()
	client, shows := s.client, s.shows
	p.mu.Unlock()
	g, err := p.s.makeBlank(s.kind)
	if err != nil {
		return err
	}
	if err = g.await(); err == nil {
		err = p.s.tellBlank(g)
	}
	if err == nil && shows {
		err = errors.Join(g.container.MapClient(int(client.uid), int(client.gid)), bundle.ReadMounts())
	}
	if err != nil {
		return errors.Join(err, g.discard())
	}
	_ = g.attendant.Rest() // or else Begin asks
	p.mu.Lock()
	closed := p.closed || p.shelves[s.kind.key()] != s
	if !closed {
		s.ready = append(s.ready, g)
	}
	p.mu.Unlock()
	if closed {
		return g.discard()
	}
	return nil
}

// drop takes a shelf away whose blanks cannot be made: who wants one is told why.
func (p *pool) drop(s *shelf) {
	p.mu.Lock()
	ready := s.ready
	s.ready = nil
	delete(p.shelves, s.kind.key())
	p.mu.Unlock()
	for _, g := range ready {
		_ = g.discard()
	}
}

// close ends all blanks. None is given away any more.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var all []*guest
	for key, s := range p.shelves {
		all = append(all, s.ready...)
		s.ready = nil
		delete(p.shelves, key)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
	p.mu.Unlock()
	var wait sync.WaitGroup
	for _, g := range all {
		wait.Go(func() { _ = g.discard() })
	}
	wait.Wait()
	p.filler.Wait()
}
