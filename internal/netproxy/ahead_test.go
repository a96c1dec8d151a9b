package netproxy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inodes of sockets, and addresses of memory, differ from namespace to namespace.
var inodes = regexp.MustCompile(`\b[0-9]{5,}\b|\b[0-9a-f]{16}\b`)

// portrait is what a guest can read of its network.
func portrait(t *testing.T, netns *os.File) map[string]string {
	t.Helper()
	seen := make(map[string]string)
	read := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		// Line by line: sockets are listed in any order.
		lines := strings.Split(inodes.ReplaceAllString(string(data), "N"), "\n")
		for i, line := range lines {
			_, after, numbered := strings.Cut(line, ": ")
			if numbered && strings.Contains(path, "/net/tcp") {
				lines[i] = after
			}
		}
		slices.Sort(lines)
		seen[path] = strings.Join(lines, "\n")
	}
	if err := inside(netns, func() error {
		for _, name := range strings.Fields("arp dev fib_trie if_inet6 igmp igmp6 ip6_flowlabel ipv6_route netlink packet protocols raw raw6 route sockstat sockstat6 tcp tcp6 udp udp6 unix") {
			read("/proc/thread-self/net/" + name)
		}
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				read(path)
			}
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	// Of the host and not of the namespace: how many sockets of each kind it has now.
	delete(seen, "/proc/thread-self/net/protocols")
	return seen
}

// A network that was prepared for endpoints is, once it has them, like every other with them.
func TestEndpointsThatComeLaterMakeTheSameNetwork(t *testing.T) {
	watchLeaks(t)
	for _, texts := range [][]string{
		{"127.0.0.1:9200"}, {"10.1.2.3:5432"}, {"127.0.0.1:80", "10.0.0.0/8:443", "example.org:443"}, {"[::1]:80"}, {"[fd00::/8]:80", "10.0.0.0/8:80"},
	} {
		t.Run(strings.Join(texts, ","), func(t *testing.T) {
			eps := endpoints(t, texts...)
			at, later, prepared := newNetns(t), newNetns(t), newNetns(t)
			open(t, at, Options{}, texts...)
			for netns, opts := range map[*os.File]Options{later: {}, prepared: {Ahead: true}} {
				if err := open(t, netns, opts).Update(eps); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(portrait(t, at)); n < 100 {
				t.Errorf("only %d files to compare", n)
			}
			for name, netns := range map[string]*os.File{"later": later, "prepared": prepared} {
				// The kernel counts a socket until nobody can be looking at it, and those of the whole machine.
				var want, got map[string]string
				eventually(t, "the same network as at once", func() bool {
					want, got = portrait(t, at), portrait(t, netns)
					return maps.Equal(want, got)
				})
				for path := range got {
					if got[path] != want[path] {
						t.Errorf("%s: %s:\n%s\nand not\n%s", name, path, got[path], want[path])
					}
				}
			}
		})
	}
}

// Nobody listens in a network that is prepared, and for a first endpoint nobody enters it again.
func TestAhead(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	addr := server(t, "127.0.0.1:0", echo)
	p := open(t, netns, Options{Ahead: true})
	if _, err := guestDial(netns, addr); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("before there is an endpoint: %v, want ECONNREFUSED", err)
	}
	nowhere, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	p.namespace.netns = nowhere
	if err := p.Update(endpoints(t, addr, fmt.Sprintf("10.0.0.0/8:%d", addrPort(addr).Port()))); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, mustDial(t, netns, addr))
	if err := p.Update(endpoints(t, addr, "10.0.0.0/8:80")); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a second port: %v, want EINVAL, of who enters what is no namespace", err)
	}
	p.namespace.netns = netns
	if err := p.Update(endpoints(t, addr, "10.0.0.0/8:80")); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, mustDial(t, netns, addr))
}

// What was opened for endpoints is let go of if none come, at once.
func TestAheadOfNothing(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	before := countFDs(t)
	p, err := Open(netns, nil, Options{Ahead: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
