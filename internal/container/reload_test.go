package container

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The limit is lowered in the processes of any user, whether or not it may be raised
// again; those that have chosen less keep that.
func TestOpenFilesOfUsers(t *testing.T) {
	f := newFixture(t)
	s := plainSpec("ulimit -n 30; sleep 1000 & echo up; wait")
	s.Process.User = specs.User{UID: 1234, GID: 4321}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 100, Soft: 100}}
	c, r := f.start(s)
	line(t, r)
	p, err := c.Exec(ProcessOptions{Process: &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/", Rlimits: s.Process.Rlimits}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Signal(unix.SIGKILL); _, _ = p.Wait() }()
	thaw, err := c.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := thaw(); err != nil {
			t.Error(err)
		}
	}()
	change := func(held, limit uint64) *OpenFiles {
		t.Helper()
		o, err := c.OpenFiles(held, unix.Rlimit{Cur: limit / 2, Max: limit})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Raise(); errors.Is(err, unix.EPERM) {
			return nil
		} else if err != nil {
			t.Fatal(err)
		}
		if err := o.Lower(); err != nil {
			t.Fatal(err)
		}
		return o
	}
	limits := func(pid int) (l unix.Rlimit) {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l); err != nil && err != unix.EPERM {
			t.Error(err)
		}
		return l
	}
	if o := change(100, 60); o == nil || len(o.before) != 1 { // the one that exec started
		t.Errorf("%v", o.before)
	}
	if l := limits(p.PID()); l != (unix.Rlimit{Cur: 30, Max: 60}) {
		t.Errorf("%+v", l)
	}
	if o := change(30, 20); o == nil || len(o.before) != 3 { // and those that have chosen 30
		t.Errorf("%v", o.before)
	}
	if l := limits(p.PID()); l != (unix.Rlimit{Cur: 10, Max: 20}) {
		t.Errorf("%+v", l)
	}
	want := unix.Rlimit{Cur: 20, Max: 40}
	if change(20, 40) == nil { // without CAP_SYS_RESOURCE
		want = unix.Rlimit{Cur: 10, Max: 20}
	}
	if l := limits(p.PID()); l != want {
		t.Errorf("%+v", l)
	}
}

// What processes have open is found in every one of them, with what they may do with it.
func TestOpened(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(plainSpec("exec 3</bin/sh; exec 4>'/tmp/written (deleted)'; (exec 5<>/tmp/both; echo up; sleep 1000); :"))
	line(t, r)
	open, err := c.Opened()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []OpenedFile{{Path: "/usr/bin/sh", Read: true}, {Path: "/tmp/written (deleted)", Write: true}, {Path: "/tmp/both", Read: true, Write: true}} {
		if !slices.ContainsFunc(open, func(f OpenedFile) bool {
			return f.PID > 0 && strings.HasSuffix(f.Path, want.Path) && f.Read == want.Read && f.Write == want.Write
		}) {
			t.Errorf("%+v is not among %+v", want, open)
		}
	}
}

// Whoever changes a container has it alone; those who decide by it share it. What was
// changed is what the next one finds.
func TestLoadLocked(t *testing.T) {
	f := newFixture(t)
	s := plainSpec("sleep 1000")
	s.Annotations = map[string]string{"a": "1", "b": "2"}
	made, _ := f.start(s)
	load := func(shared bool) *Container {
		t.Helper()
		c, err := LoadLocked(f.root(), made.ID(), shared)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	one, two := load(true), load(true)
	changed := make(chan *Container)
	go func() { changed <- load(false) }()
	select {
	case <-changed:
		t.Fatal("it was changed while others decide by it")
	case <-time.After(50 * time.Millisecond):
	}
	if err := errors.Join(one.Unlock(), one.Unlock(), two.Close()); err != nil {
		t.Error(err)
	}
	c := <-changed
	limit := specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: 33, Soft: 22}
	if err := c.Set(Settings{Annotations: map[string]string{"a": "3=4", "c": "5"}, OpenFiles: &limit}); err != nil {
		t.Fatal(err)
	}
	if err := c.Unlock(); err != nil {
		t.Error(err)
	}
	next := load(false)
	if a := next.Annotations(); len(a) != 3 || a["a"] != "3=4" || a["b"] != "2" || a["c"] != "5" {
		t.Errorf("%v", a)
	}
	if limits := next.config().Rlimits; len(limits) != 1 || limits[0].Hard != 33 || limits[0].Soft != 22 {
		t.Errorf("%+v", limits)
	}
	if next.Bundle() != made.Bundle() {
		t.Errorf("bundle %s", next.Bundle())
	}
}
