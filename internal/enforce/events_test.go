package enforce_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
)

// told collects what a guest's owner is told.
type told struct {
	mu  sync.Mutex
	all []enforce.Denial
}

func (t *told) add(d enforce.Denial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d)
}

func (t *told) list() []enforce.Denial {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]enforce.Denial(nil), t.all...)
}

// sum is how many denials were told of, one by one or as a number.
func (t *told) sum() (events, suppressed uint64) {
	for _, d := range t.list() {
		if d.Kind != 0 {
			events++
		}
		suppressed += d.Suppressed
	}
	return events, suppressed
}

func watch(t *testing.T, g *enforce.Guest) *told {
	t.Helper()
	var all told
	if err := g.OnDenied(all.add); err != nil {
		t.Fatal(err)
	}
	return &all
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestDenialsAreTold(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	if r := c.do(request{Op: "early", Net: "udp6"}); r.Errno != 0 {
		t.Fatal(r)
	}
	p := load(t)
	g := attach(t, p, dir, "127.0.0.1:80")
	other := watch(t, attach(t, p, newCgroup(t)))
	all := watch(t, g)
	before := time.Now()
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "10.1.2.3:81", "connect", eperm)
	c.expect("connect", "tcp6", "[fd00::5]:443", "connect", eperm)
	c.expect("connect", "tcp6", "[::ffff:10.1.2.3]:81", "connect", eperm)
	c.expect("bind", "tcp4", "127.0.0.1:7000", "bind", eperm)
	c.expect("sendto", "udp6", "[fd00::1]:53", "sendto", eperm)
	c.expect("connect", "raw4", "127.0.0.1:80", "socket", eperm)
	await(t, "six denials", func() bool { return len(all.list()) == 6 })
	for i, want := range []enforce.Denial{
		{Kind: enforce.DeniedConnect, Address: netip.MustParseAddrPort("10.1.2.3:81")},
		{Kind: enforce.DeniedConnect, Address: netip.MustParseAddrPort("[fd00::5]:443")},
		{Kind: enforce.DeniedConnect, Address: netip.MustParseAddrPort("10.1.2.3:81")},
		{Kind: enforce.DeniedBind, Address: netip.MustParseAddrPort("127.0.0.1:7000")},
		{Kind: enforce.DeniedSend, Address: netip.MustParseAddrPort("[fd00::1]:53")},
		{Kind: enforce.DeniedSocket, Socket: [3]uint32{2, 3, 1}},
	} {
		got := all.list()[i]
		if got.Kind != want.Kind || got.Address != want.Address || got.Socket != want.Socket {
			t.Errorf("denial %d: %+v, want %+v", i, got, want)
		}
		if got.Rule != enforce.NoRule || got.Errno != eperm || got.Suppressed != 0 || got.Path != "" {
			t.Errorf("denial %d: %+v", i, got)
		}
		if got.PID <= 0 || got.Command == "" || len(got.Command) > 15 {
			t.Errorf("denial %d is by %d %q", i, got.PID, got.Command)
		}
		if got.Time.Before(before.Add(-time.Second)) || got.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("denial %d at %v, it is %v", i, got.Time, time.Now())
		}
	}
	if len(other.list()) != 0 {
		t.Errorf("another guest was told %v", other.list())
	}
}

// A flood costs the host a bounded number of events, and none of its denials is lost
// from the count, whether its guest lives on or ends at once.
func TestDenialFlood(t *testing.T) {
	for _, ends := range []bool{false, true} {
		dir := newCgroup(t)
		c := startChild(t, dir)
		g := attach(t, load(t), dir)
		all := watch(t, g)
		began := time.Now()
		r := c.do(request{Op: "storm", Net: "tcp4", Addr: "127.0.0.1:80", For: time.Second})
		took := time.Since(began)
		count := uint64(r.Counts[eperm.Error()])
		if count < 300 {
			t.Fatalf("only %d denials: %v", count, r.Counts)
		}
		if ends {
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			await(t, "the count of the last ones", func() bool { e, s := all.sum(); return e+s >= count })
		}
		events, suppressed := all.sum()
		t.Logf("%d denials, %d events, %d suppressed", count, events, suppressed)
		if events+suppressed != count {
			t.Errorf("%d denials: %d events and %d suppressed", count, events, suppressed)
		}
		if bound := 51 + uint64(100*took.Seconds()); events > bound {
			t.Errorf("%d events in %v, allowed are %d", events, took, bound)
		}
		if n, err := g.Denied(); n != count || err != nil {
			t.Errorf("counted %d of %d (%v)", n, count, err)
		}
	}
}

// Guests end while others are denied: each is told its own, to the last.
func TestDenialsOfManyGuests(t *testing.T) {
	p := load(t)
	var wait sync.WaitGroup
	for i := range 4 {
		dir := newCgroup(t)
		c := startChild(t, dir)
		g := attach(t, p, dir)
		all := watch(t, g)
		wait.Go(func() {
			for range 5 * (i + 1) {
				if r := c.do(request{Op: "connect", Net: "tcp4", Addr: "127.0.0.1:80"}); r.Errno != eperm {
					t.Errorf("connecting: %v", r)
				}
			}
			if err := g.Close(); err != nil {
				t.Error(err)
			}
			if events, suppressed := all.sum(); events != uint64(5*(i+1)) || suppressed != 0 {
				t.Errorf("guest %d: %d events, %d suppressed", i, events, suppressed)
			}
		})
	}
	wait.Wait()
}
