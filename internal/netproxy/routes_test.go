package netproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Hundreds of routes are more than the socket has room for answers to; those that are there
// already, or gone, are no error, and a block that the kernel refuses takes all with it.
func TestRoutes(t *testing.T) {
	netns := newNetns(t)
	var blocks []netip.Prefix
	for i := range 600 {
		blocks = append(blocks, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i/200, i%200)))
	}
	blocks = append(blocks, netip.MustParsePrefix("203.0.113.7/32"))
	count := func() (n int) {
		t.Helper()
		err := inside(netns, func() error {
			table, err := os.ReadFile("/proc/thread-self/net/fib_trie")
			n = strings.Count(string(table), "/24 host LOCAL")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	do := func(f func(routes) error) error {
		return inside(netns, func() error {
			r, err := openRoutes()
			if err != nil {
				return err
			}
			defer r.close()
			return f(r)
		})
	}
	for range 2 {
		if err := do(func(r routes) error { return r.add(blocks) }); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n < 600 {
		t.Errorf("%d routes, want 600", n)
	}
	for range 2 {
		if err := do(func(r routes) error { return r.remove(blocks) }); err != nil {
			t.Fatal(err)
		}
	}
	bad := append(blocks, netip.PrefixFrom(netip.MustParseAddr("10.9.9.9"), 8)) // not masked
	if err := do(func(r routes) error { return r.add(bad) }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a block with bits outside of it: %v", err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d routes are left", n)
	}
}
