package container

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// endedAndLoaded is a container whose first process has ended, as `delete` finds it.
func (f *fixture) endedAndLoaded() *Container {
	f.t.Helper()
	c, _ := f.start(plainSpec("exit 0"))
	if _, err := c.Wait(); err != nil {
		f.t.Fatal(err)
	}
	return f.load(c)
}

func (f *fixture) load(c *Container) *Container {
	f.t.Helper()
	loaded, err := Load(f.root(), c.ID())
	if err != nil {
		f.t.Fatal(err)
	}
	return loaded
}

// With the first process of a pid namespace all have ended: nobody is looked for, and nobody killed.
func TestDeleteOfAnEndedContainerLooksForNobody(t *testing.T) {
	f := newFixture(t)
	c := f.endedAndLoaded()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	for _, dir := range c.groups() {
		for _, name := range []string{"cgroup.procs", "cgroup.kill"} {
			if _, err := unix.InotifyAddWatch(watch, filepath.Join(dir, name), unix.IN_OPEN); err != nil && (name == "cgroup.procs" || err != unix.ENOENT) {
				t.Fatalf("watching %s of %s: %v", name, dir, err)
			}
		}
	}
	if err := c.Delete(false); err != nil {
		t.Fatal(err)
	}
	events := make([]byte, 4096)
	n, _ := unix.Read(watch, events)
	for at := 0; at+unix.SizeofInotifyEvent <= n; at += unix.SizeofInotifyEvent { // of files: without names
		if mask := *(*uint32)(unsafe.Pointer(&events[at+4])); mask&unix.IN_OPEN != 0 {
			t.Fatal("delete opened cgroup.procs or cgroup.kill")
		}
	}
}

// A process of exec may be in the cgroups when the container ends, and not in its pid namespace:
// between the two calls that bring it there. It is ended, and the container goes.
func TestDeleteEndsWhoHasJustEntered(t *testing.T) {
	for name, deleter := range map[string]func(f *fixture, c *Container) *Container{
		"creator": func(_ *fixture, c *Container) *Container { return c },
		"another": func(f *fixture, c *Container) *Container { return f.load(c) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			c, err := Create(context.Background(), f.options(plainSpec("sleep 1000")))
			if err == nil {
				err = c.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			entering := exec.Command("sleep", "1000")
			if err := entering.Start(); err != nil {
				t.Fatal(err)
			}
			groups := c.groups()
			for _, dir := range groups {
				if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(entering.Process.Pid)), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Kill(unix.SIGKILL, false); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Wait(); err != nil {
				t.Fatal(err)
			}
			if err := deleter(f, c).Delete(false); err != nil {
				t.Errorf("deleting: %v", err)
			}
			if err := entering.Wait(); err == nil || entering.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Errorf("the process that was entering: %v", err)
			}
			for _, dir := range groups {
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("%s is left", dir)
				}
			}
		})
	}
}
