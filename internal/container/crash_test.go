package container

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// crashEnv makes the test binary a process that creates a container and hangs.
const crashEnv = "PSI_TEST_CRASH"

type crashPlan struct {
	Root, RunDir, ID string
	Spec             *specs.Spec
	Start            bool
}

func createAndHang() int {
	var plan crashPlan
	if err := json.Unmarshal([]byte(os.Getenv(crashEnv)), &plan); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	c, err := Create(context.Background(), CreateOptions{Root: plan.Root, RunDir: plan.RunDir, ID: plan.ID, Bundle: "/", Spec: plan.Spec})
	if err == nil && plan.Start {
		err = c.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	fmt.Println("created")
	time.Sleep(time.Hour)
	return 0
}

func (f *fixture) crasher(start bool) (*exec.Cmd, string) {
	f.t.Helper()
	o := f.options(autoSpec("sleep 1000 & sleep 1000"))
	text, err := json.Marshal(crashPlan{o.Root, o.RunDir, o.ID, o.Spec, start})
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd, o.ID
}

// creationTime is how long a creating process takes on this machine.
func (f *fixture) creationTime() time.Duration {
	f.t.Helper()
	cmd, _ := f.crasher(false)
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	line(f.t, out)
	took := time.Since(began)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := GC(f.run); err != nil {
		f.t.Fatal(err)
	}
	return took
}

// TestKilledCreatorLeavesNothingAfterGC: a creating process is killed after a
// random time, many times over; one gc, and nothing is left of any of them.
func TestKilledCreatorLeavesNothingAfterGC(t *testing.T) {
	f := newFixture(t)
	const rounds = 40
	window := f.creationTime() * 5 / 4
	var undone int
	for range rounds {
		cmd, _ := f.crasher(rand.IntN(2) == 0)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(window))))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if rand.IntN(3) > 0 {
			continue // let garbage pile up
		}
		report, err := GC(f.run)
		if err != nil {
			t.Fatalf("gc: %v", err)
		}
		undone += len(report.Containers)
	}
	report, err := GC(f.run)
	if err != nil {
		t.Fatalf("gc: %v", err)
	}
	undone += len(report.Containers)
	t.Logf("%d of %d creators had something to undo", undone, rounds)
	if undone == 0 {
		t.Error("no creator was killed while it had something: the test tests nothing")
	}
	if again, err := GC(f.run); err != nil || len(again.Containers)+len(again.Strays) > 0 {
		t.Errorf("a second gc found %+v, %v", again, err)
	}
}

func TestGCLeavesTheLivingAlone(t *testing.T) {
	f := newFixture(t)
	cmd, id := f.crasher(true)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line(t, out)
	if report, err := GC(f.run); err != nil || len(report.Containers) > 0 {
		t.Errorf("gc: %+v, %v", report, err)
	}
	c, err := Load(f.root(), id)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, c, "running")
	if err := Purge(f.root(), id); err == nil {
		t.Error("a living owner's container could be purged")
	}
	pids, err := c.PIDs()
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	report, err := GC(f.run)
	if err != nil || len(report.Containers) != 1 || report.Containers[0] != id {
		t.Errorf("gc: %+v, %v", report, err)
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !running(pid) })
	}
	c.Close()
}

// TestGCLeavesWhatItCannotSee: the root of a container that was meant to outlive its creator is not visible
// where gc runs. It is left alone, as long as it lives.
func TestGCLeavesWhatItCannotSee(t *testing.T) {
	f := newFixture(t)
	c := f.create(f.options(autoSpec("sleep 1000")))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", f.root(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	hidden := true
	defer func() {
		if hidden {
			_ = unix.Unmount(f.root(), 0)
		}
	}()
	report, err := GC(f.run)
	if want := (Unseen{c.ID(), f.root()}); err != nil || len(report.Containers) > 0 || len(report.Unseen) != 1 || report.Unseen[0] != want {
		t.Errorf("gc: %+v, %v, want %v to be left alone", report, err, want)
	}
	if err := unix.Unmount(f.root(), 0); err != nil {
		t.Fatal(err)
	}
	hidden = false
	wantStatus(t, c, "running")
	if report, err = GC(f.run); err != nil || len(report.Containers)+len(report.Unseen) > 0 {
		t.Errorf("gc of what it sees: %+v, %v", report, err)
	}
	if err := c.KillCgroup(); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Wait()
	if err := os.Remove(filepath.Join(f.root(), c.ID(), "state.json")); err != nil {
		t.Fatal(err)
	}
	if report, err = GC(f.run); err != nil || len(report.Containers) != 1 {
		t.Errorf("gc of what has ended: %+v, %v", report, err)
	}
}

// running is alive, and not a zombie that nobody has waited for.
func running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ")
}

func TestPurgeAfterCrash(t *testing.T) {
	f := newFixture(t)
	cmd, id := f.crasher(false)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line(t, out)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := os.Remove(filepath.Join(f.root(), id, "state.json")); err != nil {
		t.Fatal(err)
	}
	if err := Purge(f.root(), id); err != nil {
		t.Fatal(err)
	}
}

// TestGCRemovesMount: a creator that died while the guest's root was mounted.
func TestGCRemovesMount(t *testing.T) {
	f := newFixture(t)
	c, err := plan(&CreateOptions{Root: f.root(), RunDir: f.run, ID: "m", Bundle: "/", Spec: autoSpec("true")})
	if err != nil {
		t.Fatal(err)
	}
	var undo undoStack
	o := CreateOptions{ID: "m"}
	if err := os.MkdirAll(f.run, 0o711); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return c.claim(&o, &undo) },
		func() error { return c.makeRoot(&o) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.entry.Mounts, "bin"), &st); err != nil {
		t.Fatalf("the root is not mounted: %v", err)
	}
	c.entry.release() // what the kernel does when a process dies
	report, err := GC(f.run)
	if err != nil || len(report.Containers) != 1 {
		t.Errorf("gc: %+v, %v", report, err)
	}
}

func TestTornJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x@")
	e := entry{ID: "x", path: path, IDs: idRange{FirstID, 1}}
	if err := e.claim(); err != nil {
		t.Fatal(err)
	}
	defer e.release()
	if err := e.write(); err != nil {
		t.Fatal(err)
	}
	e.Detached = true
	if err := e.write(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) + 1 {
		got, err := readEntry(path, bytes.NewReader(data[:n]))
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		lines := strings.Count(string(data[:n]), "\n")
		if want := (lines > 0); (got.ID == "x") != want || got.Detached != (lines == 2) {
			t.Fatalf("cut at %d (%d lines): %+v", n, lines, got)
		}
	}
}

func TestOwner(t *testing.T) {
	f := newFixture(t)
	o, err := OpenOwner(f.run)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := GC(f.run); err != nil || report.Owners != 0 {
		t.Errorf("gc of a living owner: %+v, %v", report, err)
	}
	o.release() // what the kernel does when a process dies
	if report, err := GC(f.run); err != nil || report.Owners != 1 {
		t.Errorf("gc of a dead owner: %+v, %v", report, err)
	}
	if o, err = OpenOwner(f.run); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
