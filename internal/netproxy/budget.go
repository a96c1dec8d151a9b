package netproxy

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// perConn is how many descriptors a connection holds at most: its two sockets, and a
// pipe for each direction whose reader is slow. One that waits for bytes holds two.
const perConn = 6

// Budget shares the descriptors of a process among the guests that it serves. No guest
// takes more than half of what the others have left, so that one that opens all the
// connections it can leaves something for everybody. A nil Budget bounds nothing.
type Budget struct {
	mu   sync.Mutex
	free int // connections
}

// NewBudget shares half of the descriptors that this process may open.
func NewBudget() (*Budget, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("reading how many descriptors this process may open: %w", err)
	}
	return &Budget{free: int(min(limit.Cur, 1<<20) / 2 / perConn)}, nil
}

// take reserves one connection for a guest that has own of them.
func (b *Budget) take(own int) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if own >= (b.free+1)/2 {
		return false
	}
	b.free--
	return true
}

func (b *Budget) give() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free++
}
