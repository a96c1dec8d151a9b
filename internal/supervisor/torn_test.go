package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
)

// A reload fails, and what was done of it cannot be taken back: the guest's limits cannot be written
// any more. It ends, and nobody else does.
func TestReloadThatCannotBeTakenBack(t *testing.T) {
	s, c := embedded(t)
	before := map[string]any{"mem": "64MiB", "pids": 30}
	g, other := c.spawn(t, "torn", before), c.spawn(t, "whole", before)
	readOnly(t, childOf(t, s.cmd.Process.Pid), filepath.Join(pidsGroup(t, g), "pids.max"))
	c.refused(t, control.KindSandbox, "pids.max", map[string]any{"op": "reload", "guests": []any{other.id, g.id}, "policy": map[string]any{"mem": "96MiB", "pids": 40}})
	exit := c.exited(t, scaled(5*time.Second))
	if said := fmt.Sprint(exit); exit["guest"] != g.id || exit["cause"] != control.CauseSupervisor || !strings.Contains(said, "a reload failed and could not be taken back: ") {
		t.Errorf("it ended with %v", exit)
	}
	if got := other.run(t, "post(1)"); got != "1" {
		t.Errorf("the other guest posted %q", got)
	}
	if limit, err := os.ReadFile(filepath.Join(pidsGroup(t, other), "pids.max")); err != nil || string(limit) != "30\n" {
		t.Errorf("the other guest's limit of processes is %q, %v, want what it was", limit, err)
	}
}

// pidsGroup is the cgroup that limits how many processes a guest has.
func pidsGroup(t *testing.T, g *testGuest) string {
	t.Helper()
	for _, dir := range cgroupsOf(g.id) {
		if _, err := os.Stat(filepath.Join(dir, "pids.max")); err == nil {
			return dir
		}
	}
	t.Fatalf("guest %s has no limit of processes", g.id)
	return ""
}

// readOnly keeps a supervisor from writing a file, until that goes.
func readOnly(t *testing.T, supervisor int, file string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", supervisor))
		if err == nil {
			defer namespace.Close()
			err = unix.Unshare(unix.CLONE_FS)
		}
		if err == nil {
			err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = unix.Mount(file, file, "", unix.MS_BIND, "")
		}
		if err == nil {
			err = unix.Mount("", file, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
