package escape

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A guest that may listen at one port listens nowhere else, and leaves nothing on the host
// that answers.
func TestNetworkOfAServer(t *testing.T) {
	for _, way := range []string{"confined", "control"} {
		t.Run(way, func(t *testing.T) {
			watched(t)
			h := newHost(t)
			dir := filepath.Join(publicDir(t), "out")
			if err := os.Mkdir(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			port := freePort(t)
			policy := "tcp: [\"" + h.endpoint + "\"]\nexpose: [" + itoa(port) + "]\nfs: [{write: " + dir + "}]\n"
			_, endpoint, _ := net.SplitHostPort(h.endpoint)
			bundle := compile(t, policy, script(t, "listen"), "exposed="+itoa(port), "endpoint="+endpoint, "dir="+dir)
			if way == "control" {
				edit(t, bundle, func(c config) {
					loosen("pid", "mount", "ipc", "uts")(c)
					addMount(c, dir, dir, "bind", "bind", "rw")
				})
				mustEscape(t, run(t, bundle))
				return
			}
			mustHold(t, run(t, bundle))
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range left {
				for _, network := range []string{"unix", "unixpacket"} {
					if conn, err := net.Dial(network, path); err == nil {
						conn.Close()
						t.Errorf("ESCAPED: somebody listens at %s", path)
					} else if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EPROTOTYPE) {
						t.Errorf("connecting to %s, which the guest left: %v", path, err)
					}
				}
			}
		})
	}
}

// freePort returns a port at which nobody listens now, and so does not the one after it.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if next, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port+1)); err == nil {
			next.Close()
			return port
		}
	}
	t.Fatal("no two free ports beside each other")
	return 0
}
