package netproxy

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// errExhausted means that the guest has moved all the bytes that it may.
var errExhausted = errors.New("the guest has moved as many bytes as its policy allows (net_bytes)")

// quota is what a guest may move: bytes in total and bytes a second, both directions and
// all connections together. Zero limits nothing.
type quota struct {
	total, rate atomic.Int64
	spent       atomic.Int64

	mu   sync.Mutex
	paid time.Time // when all that was moved is paid for, at the rate
}

// burst is how far ahead of its rate a guest may be after silence.
const burst = 100 * time.Millisecond

// spend takes n bytes out of the total, all or none.
func (q *quota) spend(n int) error {
	total := q.total.Load()
	if q.spent.Add(int64(n)) > total && total > 0 {
		return errExhausted
	}
	return nil
}

func (q *quota) exhausted() bool {
	total := q.total.Load()
	return total > 0 && q.spent.Load() >= total
}

// piece is how many bytes may be moved at once: a tenth of a second's worth, so that
// slow rates are even, and at most most.
func (q *quota) piece(most int) int {
	if rate := q.rate.Load(); rate > 0 {
		return int(min(max(rate/10, 512), int64(most)))
	}
	return most
}

// owed returns how long to wait after n bytes were moved.
func (q *quota) owed(n int) time.Duration {
	rate := q.rate.Load()
	if rate <= 0 {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if earliest := now.Add(-burst); q.paid.Before(earliest) {
		q.paid = earliest
	}
	q.paid = q.paid.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return q.paid.Sub(now)
}

// meter counts what one direction of a connection moves, and holds it to the quota.
type meter struct {
	p     *Proxy
	c     *conn
	count *atomic.Uint64
}

// moved is told of bytes that have arrived, and waits until more may be moved.
func (m meter) moved(n int) {
	m.count.Add(uint64(n))
	if m.p.opts.IdleTimeout > 0 {
		m.c.last.Store(time.Now().UnixNano())
	}
	wait := m.p.quota.owed(n)
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.c.ctx.Done(): // what comes next fails
	}
}
