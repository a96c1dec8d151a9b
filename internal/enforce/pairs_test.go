package enforce_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
)

// Sockets that were made before are held too, those of other cgroups are not, and a pair goes on.
func TestHoldPairs(t *testing.T) {
	p, dir := load(t), newCgroup(t)
	if probed := enforce.ProbePairs(); (probed == nil) != p.HoldsPairs() {
		t.Errorf("a question to the kernel says %v, loading the programs %v", probed, p.HoldsPairs())
	}
	if !p.HoldsPairs() {
		err := p.HoldPairs(dir)
		if kernel(t) >= 607 {
			t.Errorf("Linux 6.7 and newer ask a cgroup's programs about unix sockets, and this one is said not to: %v", err)
		}
		if !errors.Is(err, enforce.ErrNotSupported) || !errors.Is(enforce.ProbePairs(), enforce.ErrNotSupported) {
			t.Errorf("holding pairs: %v", err)
		}
		return
	}
	if other := load(t); !other.HoldsPairs() || !slices.Equal(other.PairIDs(), p.PairIDs()) || len(p.PairIDs()) != 2 {
		t.Errorf("programs of two processes: %v and %v", p.PairIDs(), other.PairIDs())
	}
	inside, outside := startChild(t, dir), startChild(t, newCgroup(t))
	host := listenDatagrams(t)
	for _, c := range []*child{inside, outside} {
		c.expect("pair-send", "", host, "", 0)
	}
	if err := p.HoldPairs(dir); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"pair-send", "pair-connect", "pair-again"} {
		inside.expect(op, "", host, op, eperm)
		outside.expect(op, "", host, "", 0)
	}
	inside.expect("pair-talk", "", "", "", 0)
}

// What is refused to a guest is told as all its denials are, with the name that it gave, and a
// flood is counted with the others.
func TestRefusedNamesAreTold(t *testing.T) {
	load(t).HoldsPairs() // who needs them first pins them, and hears nothing of others' guests
	p, dir := load(t), newCgroup(t)
	if !p.HoldsPairs() {
		t.Skipf("the hooks connect_unix and sendmsg_unix, since Linux 6.7: %v", p.HoldPairs(dir))
	}
	c := startChild(t, dir)
	g := attach(t, p, dir)
	all := watch(t, g)
	if err := p.HoldPairs(dir); err != nil {
		t.Fatal(err)
	}
	names := []string{listenDatagrams(t), "@abstract", "@", "@a\x00bé", "relative", "x", "/é\n", "/" + strings.Repeat("l", 106)}
	for i, name := range names {
		op := []string{"pair-send", "pair-connect"}[i%2]
		c.expect(op, "", name, op, eperm)
	}
	await(t, "each name", func() bool { return len(all.list()) == len(names) })
	for i, got := range all.list() {
		want := enforce.Denial{
			Time: got.Time, PID: got.PID, Command: got.Command, // see TestDenialsAreTold
			Kind: enforce.DeniedName, Name: names[i], Rule: enforce.NoRule, Errno: eperm,
		}
		if got != want || got.PID <= 0 || got.Kind.String() != "unix" {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	const more = 200
	for range more {
		c.expect("pair-send", "", "@x", "pair-send", eperm)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if events, suppressed := all.sum(); events+suppressed != uint64(len(names))+more || events == 0 {
		t.Errorf("%d refusals: %d events and %d suppressed", len(names)+more, events, suppressed)
	}
}

// earlyPair is one that the child makes before it is held.
var earlyPair = sync.OnceValues(func() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
})

// servePair is what a child does with the ends of pairs of datagram sockets.
func servePair(req request) (reply, bool) {
	if !strings.HasPrefix(req.Op, "pair-") {
		return reply{}, false
	}
	early, err := earlyPair()
	if err != nil {
		return failed("socketpair", err), true
	}
	fresh, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed("socketpair", err), true
	}
	defer unix.Close(fresh[0])
	defer unix.Close(fresh[1])
	name := &unix.SockaddrUnix{Name: req.Addr}
	switch req.Op {
	case "pair-send":
		err = unix.Sendto(early[0], []byte("x"), 0, name)
	case "pair-again":
		err = unix.Connect(early[0], name)
	case "pair-connect":
		err = unix.Connect(fresh[0], name)
	case "pair-talk":
		for _, ends := range [][2]int{{early[0], early[1]}, {fresh[0], fresh[1]}} {
			if err = unix.Send(ends[0], []byte("x"), 0); err == nil {
				_, err = unix.Read(ends[1], make([]byte, 8))
			}
		}
	}
	return failed(req.Op, err), true
}

// kernel is the version of this one: 607 is 6.7.
func kernel(t *testing.T) (version int) {
	t.Helper()
	var name unix.Utsname
	var major, minor int
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return 100*major + minor
}

func listenDatagrams(t *testing.T) (path string) {
	t.Helper()
	path = t.TempDir() + "/datagrams"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { _ = unix.Close(fd) })
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
