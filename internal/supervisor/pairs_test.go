package supervisor

import (
	_ "embed"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
)

// pairsAttack is what a guest tries with the ends of pairs of datagram sockets. It posts
// {"pair": whether a pair worked, "again": the same afterwards, "reached": what went through,
// "refused": by which error the others did not}.
//
//go:embed testdata/pairs.py
var pairsAttack string

// TestPairsOfDatagrams gives guests of all origins a directory of the host in which somebody
// listens for datagrams, who may be written to by all: a pair may be had only where the
// kernel decides where its ends lead, and then it leads nowhere but to its other end.
func TestPairsOfDatagrams(t *testing.T) {
	s, c := embedded(t)
	for _, test := range []struct {
		name   string
		policy map[string]any
		forked bool
	}{
		{"cold", map[string]any{"isolation": "fresh"}, false},
		{"forked", map[string]any{}, true},
		{"exposing", map[string]any{"expose": []any{8000}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := hostDir(t)
			put(t, dir+"/a.txt", "a", 0, 0o666)
			test.policy["fs"] = []any{map[string]any{"write": dir + "/**"}}
			var g *testGuest
			if test.forked {
				g = c.forked(t, s, test.policy)
			} else {
				g = c.spawn(t, test.name, test.policy)
			}
			path, abstract := filepath.Join(dir, "datagrams"), "psi-test-"+filepath.Base(dir)
			heard := []*net.UnixConn{hears(t, path), hears(t, "@"+abstract)}
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			var found struct {
				Pair, Again bool
				Reached     []string
				Refused     map[string]string
			}
			answer := g.run(t, strings.NewReplacer("PATH", path, "ABSTRACT", abstract).Replace(pairsAttack))
			if err := json.Unmarshal([]byte(answer), &found); err != nil {
				t.Fatalf("%s (%v)", answer, err)
			}
			t.Logf("refused: %v", found.Refused)
			may := kernelDecides() || cgroupDecides(t) && test.policy["expose"] == nil
			if found.Pair != may || found.Again != may {
				t.Errorf("a pair of datagrams: %v, afterwards %v, want %v", found.Pair, found.Again, may)
			}
			if len(found.Reached) > 0 || len(found.Refused) != 21 {
				t.Errorf("reached %q, refused %v", found.Reached, found.Refused)
			}
			for name, errno := range found.Refused {
				if strings.Contains(name, "path") && errno != "EPERM" && errno != "EACCES" {
					t.Errorf("%s: %s is no refusal", name, errno)
				}
			}
			if may {
				tellsOf(t, c, g, path)
			}
			for _, h := range heard {
				if err := h.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if n, err := h.Read(make([]byte, 64)); err == nil {
					t.Errorf("%d bytes came to %s", n, h.LocalAddr())
				}
			}
			// What it could bind in the host's directory hears nobody either.
			if conn, err := net.Dial("unixgram", dir+"/bound"); err == nil {
				t.Error("a guest has a socket in a directory of the host")
				_ = conn.Close()
			}
			c.end(t, g)
		})
	}
}

// tellsOf checks the event of the first name that was refused to the guest.
func tellsOf(t *testing.T, c *testClient, g *testGuest, name string) {
	t.Helper()
	event := c.event(t, "DENIED", scaled(5*time.Second))
	for event["guest"] != g.id {
		event = c.event(t, "DENIED", scaled(5*time.Second))
	}
	d := details(t, event)
	if rule, there := d["rule"]; d["kind"] != "unix" || rule != nil || !there || d["suppressed"] != 0.0 {
		t.Errorf("%v", d)
	}
	// LSM programs are told of a socket, and one that somebody outside has bound has no path in the guest.
	if !kernelDecides() && (d["address"] != name || d["errno"] != "EPERM") || kernelDecides() && d["path"] != "" {
		t.Errorf("%v, want %s", d, name)
	}
}

// cgroupDecides reports whether the kernel asks a cgroup's programs about unix sockets.
func cgroupDecides(t *testing.T) bool {
	t.Helper()
	programs, err := enforce.Load()
	if err != nil {
		t.Fatal(err)
	}
	defer programs.Close()
	return programs.HoldsPairs()
}

// hears listens for datagrams.
func hears(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
