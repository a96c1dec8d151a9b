package netproxy

import (
	"testing"
	"time"
)

// Two guests share a budget: the one that takes all it can leaves something for the
// other, and what is given back can be taken again.
func TestBudget(t *testing.T) {
	watchLeaks(t)
	addr := server(t, "127.0.0.1:0", echo)
	budget := &Budget{free: 12}
	greedyNS, otherNS := newNetns(t), newNetns(t)
	greedy, other := open(t, greedyNS, Options{Budget: budget}, addr), open(t, otherNS, Options{Budget: budget}, addr)
	var held []interface{ Close() error }
	for range 20 {
		c, err := guestDial(greedyNS, addr)
		if err == nil {
			held = append(held, c)
		}
	}
	eventually(t, "the first guest has its part", func() bool { s := greedy.Stats(); return s.Active == 4 && s.Refused[NoResources] == 16 })
	for range 3 {
		c := mustDial(t, otherNS, addr)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		wantEcho(t, c)
		defer c.Close()
	}
	for _, c := range held {
		c.Close()
	}
	eventually(t, "they are given back", func() bool { return greedy.Stats().Active == 0 && budget.left() == 9 })
	wantEcho(t, mustDial(t, greedyNS, addr))
	if n := other.Stats().Active; n != 3 {
		t.Errorf("the other guest has %d", n)
	}
}

func (b *Budget) left() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

// A connection whose reader is slow holds what perConn says, and no more.
func TestDescriptorsOfSlowReaders(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", source(8<<20))
	p := open(t, netns, Options{}, addr)
	before := countFDs(t)
	const many = 20
	for range many {
		mustDial(t, netns, addr)
	}
	var last uint64
	for still := 0; still < 20; still++ { // until nothing moves any more
		time.Sleep(10 * time.Millisecond)
		if now := p.Stats().BytesIn; now != last {
			last, still = now, 0
		}
	}
	// Beside the proxy's there are the guest's and the server's own.
	if each := float64(countFDs(t)-before)/many - 2; each > perConn {
		t.Errorf("%.1f descriptors for each connection", each)
	} else {
		t.Logf("%.1f descriptors for each connection", each)
	}
}
