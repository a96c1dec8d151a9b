package container

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnInit(t *testing.T) {
	f := newFixture(t)
	o := f.options(limited(autoSpec("true"), 64*mib, 1, 20))
	var met *Container
	o.OnInit = func(c *Container) error {
		met = c
		if !alive(c.InitPID()) || c.PIDFD() == nil {
			t.Error("init is not there")
		}
		if _, err := c.UnifiedCgroup(); err != nil {
			t.Error(err)
		}
		netns, err := c.NetNS()
		if err != nil {
			t.Error(err)
		}
		netns.Close()
		if n, err := groupNumber(c.controller("pids"), "pids.max"); err != nil || n != 20 {
			t.Errorf("limits are not in force: pids.max is %d, %v", n, err)
		}
		return nil
	}
	c := f.create(o)
	if met != c {
		t.Errorf("met %p, created %p", met, c)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if status, err := c.Wait(); err != nil || status != (ExitStatus{}) {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestOnInitFails(t *testing.T) {
	f := newFixture(t)
	o := f.options(autoSpec("true"))
	wrong := errors.New("wrong")
	o.OnInit = func(*Container) error { return wrong }
	if _, err := Create(context.Background(), o); !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
}

// TestOnInitWithoutInit: init fails before, or after, it could be met.
func TestOnInitWithoutInit(t *testing.T) {
	f := newFixture(t)
	for _, spoil := range []func(*CreateOptions){
		func(o *CreateOptions) { o.Spec.Mounts[0].Type = "nofs" },
		func(o *CreateOptions) { o.Spec.Process.Args = []string{"/no/program"} },
	} {
		o := f.options(autoSpec("true"))
		o.OnInit = func(*Container) error { return nil }
		spoil(&o)
		_, err := Create(context.Background(), o)
		if err == nil || strings.Contains(err.Error(), errNoInit.Error()) {
			t.Errorf("got %v, want init's own error", err)
		}
	}
}

func TestOnInitBesidePIDFDSocket(t *testing.T) {
	f := newFixture(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	o := f.options(autoSpec("true"))
	o.PIDFDSocket = theirs
	called := false
	o.OnInit = func(*Container) error { called = true; return nil }
	c := f.create(o)
	theirs.Close()
	pidfd, err := receivePIDFD(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if pid, err := pidOf(pidfd); err != nil || pid != c.InitPID() || !called {
		t.Errorf("pid %d, %v; init is %d; OnInit called: %v", pid, err, c.InitPID(), called)
	}
}
