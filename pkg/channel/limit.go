package channel

import (
	"sync"

	"golang.org/x/sys/unix"
)

// limit is the policy's for one value, in bytes, and what a lower one leaves of the one
// before: that still holds for frames that were under way, and for the first larger one
// after them. The guest may have been about to send it, and an honest one looks at its limit
// before every large frame.
type limit struct {
	now, former int64 // former is now if nothing is left of one
	underWay    int64 // the position of the first byte of the stream that was not

	mu      sync.Mutex
	changes []int64 // that the reader has not looked at
}

// SetLimit changes the policy's limit of one value, in bytes. Any goroutine may call it.
func (r *Reader) SetLimit(message int64) {
	r.limit.mu.Lock()
	defer r.limit.mu.Unlock()
	r.limit.changes = append(r.limit.changes, message)
}

// Hear has the reader call news before it refuses a value for its size: what raises the
// limit shall call SetLimit before news returns.
func (r *Reader) Hear(news func()) { r.hear = news }

// takeChanges is called when a header has been read: its frame counts as under way.
func (r *Reader) takeChanges() {
	l := &r.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, message := range l.changes {
		if message < l.now {
			l.underWay = r.position + r.unread()
		}
		l.now, l.former = message, max(l.former, message)
	}
	l.changes = nil
}

// unread is how much has been sent and not been taken out of the reader's buffer; of a
// reader of something else than a socket, nothing is known.
func (r *Reader) unread() int64 {
	if r.socket == nil {
		return 0
	}
	total := r.buffered.Buffered()
	raw, err := r.socket.conn.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			n, _ := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
			total += n
		})
	}
	return int64(total)
}

// fits says whether a value of that size is let in.
func (r *Reader) fits(size int64) bool {
	r.takeChanges()
	if size > r.limit.former+ValueSlack && r.hear != nil {
		r.hear()
		r.takeChanges()
	}
	return size <= r.limit.former+ValueSlack
}

// letIn notes a value of that size whose frame began at start.
func (r *Reader) letIn(size, start int64) {
	if size > r.limit.now+ValueSlack && start >= r.limit.underWay {
		r.limit.former = r.limit.now
	}
}
