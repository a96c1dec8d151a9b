package container

import (
	"os"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// asRoot changes what a guest sees for root, whose files the guest's own id map shows.
func (s *shell) asRoot(change Change) {
	s.t.Helper()
	applied, err := s.changeFor(0, change)
	if err != nil {
		s.t.Fatal(err)
	}
	applied.Keep()
}

// shownByOwnMap reports whether the guest's user namespace is the one that maps the client's files.
func (s *shell) shownByOwnMap() bool {
	s.t.Helper()
	var its, used unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(s.c.pid)+"/ns/user", &its); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Fstat(int(s.c.clientIDs.namespace.Fd()), &used); err != nil {
		s.t.Fatal(err)
	}
	return its.Ino == used.Ino
}

// Root's files are the guest's, and others' are not, without a namespace made for it.
func TestOwnIDMap(t *testing.T) {
	s := newFixture(t).shell()
	dir, handle := hostDir(t)
	if err := os.WriteFile(dir+"/roots", []byte("root's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.asRoot(Change{Show: []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true}}})
	s.wants("cat /srv/data/roots", "root's--0")
	s.wants("cat /srv/data/a", "cat: /srv/data/a: Permission denied--1")
	if !s.shownByOwnMap() {
		t.Error("a namespace was made for the map")
	}
}

// A guest that may make user namespaces does not choose whose files are its own: its first process
// goes to one in which its user is the owner of somebody else's files.
func TestOwnIDMapIsNotTheGuestsToChoose(t *testing.T) {
	f := newFixture(t)
	spec := autoSpec(`exec unshare --map-user=1234 --map-group=1234 /bin/sh -c '` + serveLines + `'`)
	needed := []string{"CAP_SETFCAP"} // to map root
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: needed, Permitted: needed, Effective: needed}
	s := f.shellOf(spec)
	s.wants("id -u", "1234--0")
	dir, handle := hostDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.asRoot(Change{Show: []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true}}})
	s.wants("cat /srv/data/a", "cat: /srv/data/a: Permission denied--1")
	if s.shownByOwnMap() {
		t.Error("the guest's map was used")
	}
}
