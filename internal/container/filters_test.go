package container

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const tryKill = "kill -0 1 2>&1; cat /proc/self/status"

// errnoSpec is a container in which kill gives errno; the other errno makes its filter this test's own.
func errnoSpec(script string, errno uint) *specs.Spec {
	s := plainSpec(script)
	own := uint(os.Getpid()) % 4000
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"kill"}, Action: specs.ActErrno, ErrnoRet: &errno},
		{Names: []string{"acct"}, Action: specs.ActErrno, ErrnoRet: &own},
	}}
	return s
}

// newFilter returns the one file in the directory of filters that was not there before.
func newFilter(t *testing.T, before map[string]bool) string {
	t.Helper()
	entries, err := os.ReadDir(filters())
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if !before[e.Name()] {
			found = append(found, e.Name())
		}
	}
	if len(found) != 1 {
		t.Fatalf("new filters: %v", found)
	}
	path := filepath.Join(filters(), found[0])
	t.Cleanup(func() { os.Remove(path) })
	return path
}

func filterNames() map[string]bool {
	out := map[string]bool{}
	entries, _ := os.ReadDir(filters())
	for _, e := range entries {
		out[e.Name()] = true
	}
	return out
}

// forge makes a kept filter give another errno, which shows who uses it.
func forge(t *testing.T, data []byte, from, to uint32) []byte {
	t.Helper()
	word := func(errno uint32) []byte { return binary.NativeEndian.AppendUint32(nil, 0x50000|errno) }
	if !bytes.Contains(data, word(from)) {
		t.Fatal("the filter's errno is not in its file")
	}
	// The calls' log has it too, and must stay as it is.
	at := bytes.LastIndex(data, word(from))
	return append(append(append([]byte{}, data[:at]...), word(to)...), data[at+4:]...)
}

func TestFilterIsKeptForTheNext(t *testing.T) {
	const wants, forged = "No message of desired type", "Identifier removed"
	f := newFixture(t)
	run := func() string {
		c, r := f.start(errnoSpec(tryKill, uint(unix.ENOMSG)))
		out, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Wait(); err != nil {
			t.Fatal(err)
		}
		if count := strings.Count(string(out), "\nSeccomp_filters:\t1\n"); count != 1 {
			t.Errorf("not one filter: %q", out)
		}
		said, _, _ := strings.Cut(string(out), "\n")
		return said
	}
	before := filterNames()
	first := run()
	if !strings.Contains(first, wants) {
		t.Fatalf("the first says %q", first)
	}
	path := newFilter(t, before)
	if second := run(); second != first {
		t.Errorf("the first says %q, the second %q", first, second)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, forge(t, data, uint32(unix.ENOMSG), uint32(unix.EIDRM)), 0o600); err != nil {
		t.Fatal(err)
	}
	if third := run(); !strings.Contains(third, forged) {
		t.Errorf("the file is not used: the third says %q", third)
	}
}

// A guest that has files where the host keeps filters changes the filter of no process that exec starts,
// nor of a container that joins its mounts.
func TestFiltersOfAGuestAreNotUsed(t *testing.T) {
	f := newFixture(t)
	before := filterNames()
	spec := errnoSpec("echo up; sleep 1000", uint(unix.ENOMSG))
	planted := t.TempDir()
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: filters(), Type: "bind", Source: planted, Options: []string{"bind"}})
	c, r := f.start(spec)
	line(t, r)
	path := newFilter(t, before)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(planted, 0o700); err != nil {
		t.Fatal(err)
	}
	evil := forge(t, data, uint32(unix.ENOMSG), uint32(unix.EIDRM))
	if err := os.WriteFile(filepath.Join(planted, filepath.Base(path)), evil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := execOutput(t, c, ProcessOptions{Process: process("cat " + filters() + "/*; " + tryKill)})
	if !strings.Contains(out, string(evil)) || !strings.Contains(out, "No message of desired type") {
		t.Errorf("exec: %q", out)
	}
	config := c.config()
	if !mayKnowFilters(&config) {
		t.Error("a container with its own mounts does without what is kept")
	}
	for i := range config.Namespaces {
		config.Namespaces[i].Path = "/proc/1/ns/mnt"
	}
	if mayKnowFilters(&config) {
		t.Error("a container that joins somebody's mounts reads filters there")
	}
}
