package escape

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
)

// TestPairs has bundles try what a supervisor's guests try (TestPairsOfDatagrams there), in a directory
// of the host in which somebody listens whom all may write to: an end of a pair of datagram sockets
// leads nowhere but to its other end, and there are none where nobody decides about that. With a
// filter of system calls that psi has not chosen there are none either.
func TestPairs(t *testing.T) {
	attack, err := os.ReadFile("../../../internal/supervisor/testdata/pairs.py")
	if err != nil {
		t.Fatal(err)
	}
	source := "post = print\n" + string(attack)
	byLSM, byCgroup := holdsPairs(t)
	for _, test := range []struct {
		name     string
		document string
		may      bool
		bundle   func(t *testing.T, document, source string) string
	}{
		{"bundle", "fs: [{write: %s/**}]", byLSM || byCgroup, ownBundle},
		{"bundle that exposes", "{expose: [8000], fs: [{write: %s/**}]}", byLSM, ownBundle},
		{"bundle with another filter", "fs: [{write: %s/**}]", false, editedBundle},
		{"engine", "{seccomp: python, fs: [{write: %s}]}", byLSM || byCgroup, pythonBundle},
	} {
		t.Run(test.name, func(t *testing.T) {
			watched(t)
			dir := filepath.Join(publicDir(t), "open")
			write(t, filepath.Join(dir, "a.txt"), "a", 0o666)
			path, abstract := filepath.Join(dir, "datagrams"), "psi-escape-"+filepath.Base(filepath.Dir(dir))
			bundle := test.bundle(t, strings.ReplaceAll(test.document, "%s", dir), strings.NewReplacer("PATH", path, "ABSTRACT", abstract).Replace(source))
			// A view that is made when they are there does not show them.
			heard := []*net.UnixConn{hears(t, path), hears(t, "@"+abstract)}
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			got := run(t, bundle)
			var found struct {
				Pair, Again bool
				Reached     []string
				Refused     map[string]string
			}
			if err := json.Unmarshal([]byte(got.stdout), &found); err != nil {
				t.Fatalf("%v: %+v", err, got)
			}
			t.Logf("refused: %v", found.Refused)
			if found.Pair != test.may || found.Again != test.may {
				t.Errorf("a pair of datagrams: %v, afterwards %v, want %v", found.Pair, found.Again, test.may)
			}
			if len(found.Reached) > 0 || len(found.Refused) != 21 {
				t.Errorf("reached %q, refused %v", found.Reached, found.Refused)
			}
			for name, errno := range found.Refused {
				if strings.Contains(name, "path") && errno != "EPERM" && errno != "EACCES" {
					t.Errorf("%s: %s is no refusal", name, errno)
				}
			}
			for _, h := range heard {
				if n := waiting(t, h); n > 0 {
					t.Errorf("%d bytes came to %s", n, h.LocalAddr())
				}
			}
		})
	}
}

// holdsPairs says who decides here where an end leads.
func holdsPairs(t *testing.T) (byLSM, byCgroup bool) {
	t.Helper()
	files, err := enforce.LoadFiles()
	if err == nil {
		err = files.Close()
		byLSM = true
	}
	if byLSM && err != nil {
		t.Fatal(err)
	}
	return byLSM, !byLSM && enforce.ProbePairs() == nil
}

func ownBundle(t *testing.T, document, source string) string { return compile(t, document, source) }

// editedBundle has one rule more in its filter, which allows what it did not decide about.
func editedBundle(t *testing.T, document, source string) string {
	bundle := compile(t, document, source)
	edit(t, bundle, func(c config) {
		filter := c.at("linux", "seccomp")
		filter["syscalls"] = append(filter["syscalls"].([]any), map[string]any{"names": []any{"getcpu"}, "action": "SCMP_ACT_ALLOW"})
	})
	return bundle
}

// pythonBundle is what an engine makes of an image, under a policy that asks for psi's filter.
func pythonBundle(t *testing.T, document, source string) string {
	return engineBundle(t, document, func(c config) {
		_, dir, _ := strings.Cut(document, "write: ")
		dir, _, _ = strings.Cut(dir, "}")
		c["process"].(config)["args"] = []string{"/usr/bin/python3.11", "-I", "-c", source}
		mounts := c["mounts"].([]config)
		c["mounts"] = append(mounts[:len(mounts)-1], config{"destination": dir, "type": "bind", "source": dir, "options": []string{"rbind", "rw"}})
	})
}

// waiting is how much of a datagram is there to be received: whoever sent it has ended.
func waiting(t *testing.T, conn *net.UnixConn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _, _ = unix.Recvfrom(int(fd), make([]byte, 64), unix.MSG_DONTWAIT) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
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
