package decisions

import (
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// landscape makes what the table names.
func landscape(t *testing.T, asked table) string {
	t.Helper()
	base, err := os.MkdirTemp("/srv", "psi-decisions-") // not /tmp: the guest has its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(base, 0o755))
	at := func(name string) string {
		raw, err := url.PathUnescape(name)
		must(err)
		path := filepath.Join(base, raw)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		return path
	}
	for _, name := range asked.Files {
		must(os.WriteFile(at(name), make([]byte, 4096), 0o755))
	}
	for _, name := range asked.FIFOs {
		must(unix.Mkfifo(at(name), 0o666))
	}
	for _, name := range asked.Sockets {
		l, err := net.ListenPacket("unixgram", at(name))
		must(errors.Join(err, os.Chmod(at(name), 0o666)))
		t.Cleanup(func() { l.Close() })
	}
	for name, target := range asked.Symlinks {
		must(os.Symlink(target, at(name)))
	}
	for name, target := range asked.Links {
		must(os.Link(at(target), at(name)))
	}
	makeDeep(t, at(asked.Deep))
	return base
}

// makeDeep makes a file with a path of 4,095 bytes, step by step: no call takes a longer one.
func makeDeep(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range deepNames(dir) {
		dir += "/" + name
		if len(dir) == 4095 {
			if err := os.WriteFile(dir, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// deepNames are the components that fill a path up to 4,095 bytes.
func deepNames(dir string) []string {
	var names []string
	for left := 4095 - len(dir); left > 0; {
		n := min(left-1, 240)
		if left-1-n == 1 { // a slash alone would remain
			n--
		}
		names = append(names, strings.Repeat("d", n))
		left -= n + 1
	}
	return names
}

// listenAt listens at a few ports in a row, of every address of the host, and returns the first.
func listenAt(t *testing.T) int {
	t.Helper()
	const count = 5
	for {
		var all []net.Listener
		first := 0
		for len(all) < count {
			l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(first+min(first, len(all)))))
			if err != nil {
				break
			}
			all = append(all, l)
			first = all[0].Addr().(*net.TCPAddr).Port
		}
		for _, l := range all {
			t.Cleanup(func() { l.Close() })
		}
		if len(all) == count {
			return first
		}
	}
}
