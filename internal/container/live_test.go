package container

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// shell is a guest that does what it is told.
type shell struct {
	t  *testing.T
	c  *Container
	in io.Writer
	r  *bufio.Reader
}

// serveLines is what the guest of a shell runs.
const serveLines = `while read -r line; do eval "$line" 2>&1; echo "--$?"; done`

func (f *fixture) shell() *shell { return f.shellOf(autoSpec(serveLines)) }

func (f *fixture) shellOf(spec *specs.Spec) *shell {
	f.t.Helper()
	in, stdin, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	o := f.options(spec)
	o.Stdin, o.Stdout, o.Stderr = in, out, out
	o.ClientUID, o.ClientGID = 1234, 1234
	o.RootFiles = map[string][]byte{"/etc/hosts": []byte("old\n")}
	c := f.create(o)
	in.Close()
	out.Close()
	f.t.Cleanup(func() { stdin.Close(); stdout.Close() })
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	return &shell{f.t, c, stdin, bufio.NewReader(stdout)}
}

// does runs one line and returns what it wrote and "--" and its status.
func (s *shell) does(line string) string {
	s.t.Helper()
	fmt.Fprintln(s.in, line)
	var out strings.Builder
	for {
		text, err := s.r.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: %v", line, err)
		}
		out.WriteString(strings.TrimSpace(text))
		if strings.HasPrefix(text, "--") {
			return out.String()
		}
	}
}

func (s *shell) wants(line, want string) {
	s.t.Helper()
	if got := s.does(line); got != want {
		s.t.Errorf("%s: %q, want %q", line, got, want)
	}
}

// change freezes the guest, applies, and lets it go on.
func (s *shell) change(change Change) (*Applied, error) { return s.changeFor(1234, change) }

// changeFor does it for another client.
func (s *shell) changeFor(client int, change Change) (*Applied, error) {
	s.t.Helper()
	thaw, err := s.c.Freeze()
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		if err := thaw(); err != nil {
			s.t.Error(err)
		}
	}()
	change.ClientUID, change.ClientGID = client, client
	return s.c.Apply(change)
}

// mounted are mounts to take away, as they are now.
func (s *shell) mounted(places ...string) (mounts []HiddenMount) {
	s.t.Helper()
	err := s.c.inside(func() error {
		for _, place := range places {
			m, _ := mountAt(place) // of what is none Apply has to say so
			mounts = append(mounts, HiddenMount{place, m.Write, m.Dev, m.Ino})
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return mounts
}

// hostDir is a directory of the client's with one file, private to it.
func hostDir(t *testing.T) (string, *os.File) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "a")
	if err := errors.Join(os.WriteFile(file, []byte("secret\n"), 0o600), os.Chown(dir, 1234, 1234), os.Chown(file, 1234, 1234)); err != nil {
		t.Fatal(err)
	}
	handle, err := os.OpenFile(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { handle.Close() })
	return dir, handle
}

func TestChangeOfARunningGuest(t *testing.T) {
	s := newFixture(t).shell()
	dir, handle := hostDir(t)
	s.wants("[ -e /srv/data/a ]", "--1")
	applied, err := s.change(Change{
		Show:  []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true}},
		Files: map[string][]byte{"/etc/hosts": []byte("new\n")}, Tmp: 4 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("read -r x < /srv/data/a; echo $x", "secret--0")
	s.wants("read -r x < /etc/hosts; echo $x", "new--0")
	if got := s.does("echo x > /srv/data/a"); !strings.Contains(got, "ead-only") {
		t.Errorf("writing into a read-only mount: %s", got)
	}
	if got := s.does("echo x > /srv/other"); !strings.Contains(got, "ead-only") {
		t.Errorf("writing into the root: %s", got)
	}
	if got := s.does("echo x > /etc/hosts"); !strings.Contains(got, "ead-only") && !strings.Contains(got, "ermission") {
		t.Errorf("writing into the root: %s", got)
	}

	// The same place, writable now.
	applied, err = s.change(Change{Hide: s.mounted("/srv/data"), Show: []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true, Write: true}}})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("echo mine > /srv/data/b", "--0")
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "b"), &stat); err != nil || stat.Uid != 1234 || stat.Gid != 1234 {
		t.Errorf("the guest's file belongs to %d:%d, not to the client (%v)", stat.Uid, stat.Gid, err)
	}
	applied, err = s.change(Change{Hide: s.mounted("/srv/data")})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("[ -e /srv/data/a ]", "--1")
}

// What the guest has open, in whatever way, is not taken away: the change fails and
// everything is as it was.
func TestChangeOfWhatIsOpen(t *testing.T) {
	s := newFixture(t).shell()
	_, handle := hostDir(t)
	_, other := hostDir(t)
	show := Change{Show: []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true}, {Source: other, Dest: "/srv/second", Dir: true}}}
	applied, err := s.change(show)
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	for open, closed := range map[string]string{
		"exec 5< /srv/data/a": "exec 5<&-",
		"exec 5< /srv/data":   "exec 5<&-",
		"cd /srv/data":        "cd /",
	} {
		s.wants(open, "--0")
		_, err := s.change(Change{Hide: s.mounted("/srv/data", "/srv/second"), Files: map[string][]byte{"/etc/hosts": []byte("new\n")}})
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "/srv/data") {
			t.Errorf("%s: %v", open, err)
		}
		s.wants("read -r x < /srv/data/a; echo $x", "secret--0")
		s.wants("read -r x < /srv/second/a; echo $x", "secret--0")
		s.wants("read -r x < /etc/hosts; echo $x", "old--0")
		s.wants(closed, "--0")
	}
	applied, err = s.change(Change{Hide: s.mounted("/srv/data", "/srv/second")})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
}

// link makes a symbolic link in the guest's /tmp, as one who may make links there could.
func link(t *testing.T, c *Container) {
	t.Helper()
	err := c.inside(func() error {
		defer setFSIDs(int(c.entry.IDs.First))()
		return os.Symlink("/etc", "/tmp/link")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Half of a change is none.
func TestFailedChangeLeavesNothing(t *testing.T) {
	s := newFixture(t).shell()
	_, handle := hostDir(t)
	applied, err := s.change(Change{Show: []LiveMount{{Source: handle, Dest: "/srv/data", Dir: true}}})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("echo full > /tmp/file", "--0")
	link(t, s.c)
	for _, change := range []Change{
		{Hide: s.mounted("/srv/data"), Show: []LiveMount{{Source: handle, Dest: "/new", Dir: true}, {Source: handle, Dest: "/proc/self/x", Dir: true}}},
		{Hide: s.mounted("/srv/data"), Show: []LiveMount{{Source: handle, Dest: "/tmp/link/job", Dir: true}}},
		{Hide: s.mounted("/srv/data", "/srv/nothing")},
		{Hide: s.mounted("/srv/data", "/etc")},
		{Hide: s.mounted("/srv/data"), Files: map[string][]byte{"/etc/hosts": nil, "/etc/hosts/x": nil}},
	} {
		if _, err := s.change(change); err == nil {
			t.Errorf("%+v: no error", change)
		}
		s.wants("read -r x < /srv/data/a; echo $x", "secret--0")
		s.wants("[ -e /new/a ]", "--1")
		s.wants("read -r x < /etc/hosts; echo $x", "old--0")
	}
	// A place that is not used any more is not there any more.
	_, other := hostDir(t)
	if applied, err = s.change(Change{Show: []LiveMount{{Source: other, Dest: "/srv/deep/er/data", Dir: true}}}); err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	if applied, err = s.change(Change{Hide: s.mounted("/srv/deep/er/data")}); err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("[ -e /srv/deep ]", "--1")
	// The guest's /tmp is its own.
	if applied, err = s.change(Change{Show: []LiveMount{{Source: other, Dest: "/tmp/job/in", Dir: true}}}); err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("read -r x < /tmp/job/in/a; echo $x; echo own > /tmp/job/file", "secret--0")
	if applied, err = s.change(Change{Hide: s.mounted("/tmp/job/in")}); err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("[ -e /tmp/job/in ]", "--1")
	s.wants("read -r x < /tmp/job/file; echo $x", "own--0")
	// And what was done can be taken back.
	thaw, err := s.c.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	applied, err = s.c.Apply(Change{
		Hide: s.mounted("/srv/data"), Show: []LiveMount{{Source: handle, Dest: "/srv/deep/new", Dir: true}},
		Files: map[string][]byte{"/etc/hosts": []byte("new\n"), "/etc/more": nil}, Tmp: 2 << 20, ClientUID: 1234, ClientGID: 1234,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(applied.Undo(), thaw()); err != nil {
		t.Fatal(err)
	}
	s.wants("read -r x < /srv/data/a; echo $x", "secret--0")
	s.wants("[ -e /srv/deep ]", "--1")
	s.wants("[ -e /etc/more ]", "--1")
	s.wants("read -r x < /etc/hosts; echo $x", "old--0")
	s.wants("read -r x < /tmp/file; echo $x", "full--0")
}

// What is taken away must not uncover something else that is mounted there.
func TestChangeOfWhatIsMountedTwice(t *testing.T) {
	s := newFixture(t).shell()
	_, handle := hostDir(t)
	show := LiveMount{Source: handle, Dest: "/srv/data", Dir: true}
	for range 2 {
		applied, err := s.change(Change{Show: []LiveMount{show}})
		if err != nil {
			t.Fatal(err)
		}
		applied.Keep()
	}
	if _, err := s.change(Change{Hide: s.mounted("/srv/data")}); err == nil || !strings.Contains(err.Error(), "something else is mounted at /srv/data") {
		t.Errorf("%v", err)
	}
	s.wants("read -r x < /srv/data/a; echo $x", "secret--0")
}

// The guest exchanges directories of its /tmp that something is mounted in: what it was to lose is
// where it was not, and what it may keep in its place.
func TestChangeOfWhatWasExchanged(t *testing.T) {
	s := newFixture(t).shell()
	_, one := hostDir(t)
	_, two := hostDir(t)
	applied, err := s.change(Change{Show: []LiveMount{{Source: one, Dest: "/tmp/a/in", Dir: true}, {Source: two, Dest: "/tmp/b/in", Dir: true}}})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	hidden := s.mounted("/tmp/a/in")
	exchange := func() {
		t.Helper()
		err := s.c.inside(func() error {
			defer setFSIDs(int(s.c.entry.IDs.First))()
			return unix.Renameat2(unix.AT_FDCWD, "/tmp/a", unix.AT_FDCWD, "/tmp/b", unix.RENAME_EXCHANGE)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if _, err := s.change(Change{Hide: hidden}); err == nil || !strings.Contains(err.Error(), "what is mounted at /tmp/a/in is not what was") {
		t.Errorf("%v", err)
	}
	exchange()
	// Nor is a mount of the same that can be written one that cannot.
	hidden[0].Write = true
	if _, err := s.change(Change{Hide: hidden}); err == nil || !strings.Contains(err.Error(), "what is mounted at /tmp/a/in is not what was") {
		t.Errorf("%v", err)
	}
	hidden[0].Write = false
	applied, err = s.change(Change{Hide: hidden})
	if err != nil {
		t.Fatal(err)
	}
	applied.Keep()
	s.wants("[ -e /tmp/a ]", "--1")
	s.wants("read -r x < /tmp/b/in/a; echo $x", "secret--0")
}
