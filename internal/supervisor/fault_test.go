package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waitGone checks that no process of the guests runs after the patience.
func waitGone(t *testing.T, patience time.Duration, ids ...string) {
	t.Helper()
	start := time.Now()
	for {
		var left []string
		for _, id := range ids {
			left = append(left, pidsOf(id)...)
		}
		if len(left) == 0 {
			t.Logf("gone after %v", time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("still running after %v: %v", patience, left)
		}
		time.Sleep(time.Millisecond)
	}
}

// guestsIn lists everything in a run directory that is named after a guest or its ids.
func guestsIn(runDir string) []string {
	var found []string
	_ = filepath.WalkDir(runDir, func(path string, _ os.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && path != runDir && (strings.HasPrefix(name, "psi-") || strings.Contains(name, "@")) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// checkGC starts another supervisor in the same run directory and checks that what
// the dead one left is gone.
func checkGC(t *testing.T, runDir string, ids ...string) {
	t.Helper()
	mine, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	s := startShim(t, Config{RunDir: runDir}, theirs)
	_ = theirs.Close()
	c := newTestClient(t, mine)
	c.hello(t)
	for _, id := range ids {
		if left := cgroupsOf(id); len(left) > 0 {
			t.Errorf("left after gc: %v", left)
		}
	}
	owners, _ := filepath.Glob(filepath.Join(runDir, "owners", "*"))
	if left := guestsIn(runDir); len(owners) != 1 || len(left) > 0 {
		t.Errorf("left after gc: owners %v, of guests %v", owners, left)
	}
	_ = c.conn.Close()
	if !s.gone(scaled(10 * time.Second)) {
		t.Error("the second supervisor did not end with its client")
	}
}

func TestSupervisorKilled(t *testing.T) {
	for _, which := range []string{"outer", "inner"} {
		t.Run(which, func(t *testing.T) {
			s, c := embedded(t)
			var ids []string
			for i := range 3 {
				g := c.spawn(t, fmt.Sprint("g", i), nil)
				g.run(t, "import os\nfor _ in range(3):\n if os.fork() == 0:\n  while True: pass")
				ids = append(ids, g.id)
			}
			if pids := pidsOf(ids[0]); len(pids) < 4 {
				t.Fatalf("too few processes: %v", pids)
			}
			victim := s.cmd.Process.Pid
			if which == "inner" {
				victim = childOf(t, victim)
			}
			if err := unix.Kill(victim, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waitGone(t, scaled(time.Second), ids...)
			if !s.gone(scaled(5 * time.Second)) {
				t.Error("the outer process did not end")
			}
			checkGC(t, s.runDir, ids...)
		})
	}
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		var child int
		data, _ := os.ReadFile(file)
		if _, err := fmt.Sscan(string(data), &child); err == nil {
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// The client is a process of its own here, and a forked child of it holds the
// control socket open: end of file never comes.
func TestClientKilled(t *testing.T) {
	runDir := newRunDir(t)
	argument, _ := json.Marshal(Config{RunDir: runDir, Rootfs: testRoot})
	cmd := exec.Command("/proc/self/exe", "client", string(argument))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var reply struct {
		Guest             string
		Supervisor, Child int
	}
	if err := json.NewDecoder(out).Decode(&reply); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(reply.Child, unix.SIGKILL) }()
	if len(pidsOf(reply.Guest)) == 0 {
		t.Fatal("the guest does not run")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waitGone(t, scaled(time.Second), reply.Guest)
	for range 1000 {
		if state, _, err := processStat(reply.Supervisor); err != nil || state == 'Z' {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if left := cgroupsOf(reply.Guest); len(left) > 0 {
		t.Errorf("a supervisor whose client died left %v", left)
	}
	checkGC(t, runDir, reply.Guest)
}

// clientMain is the process that TestClientKilled kills.
func clientMain(argument string) int {
	t := &mainT{}
	var config Config
	if err := json.Unmarshal([]byte(argument), &config); err != nil {
		return fail(err)
	}
	mine, theirs, err := socketPair()
	if err != nil {
		return fail(err)
	}
	s := startShim(t, config, theirs)
	// This child outlives its parent and keeps the client's end open.
	holder := exec.Command("/bin/sleep", "60")
	holder.ExtraFiles = []*os.File{mine}
	if err := holder.Start(); err != nil {
		return fail(err)
	}
	c := newTestClient(t, mine)
	c.hello(t)
	g := c.spawn(t, "orphan", nil)
	c.occupy(t, g) // it will not see the end of its channel
	fmt.Printf(`{"guest":%q,"supervisor":%d,"child":%d}`+"\n", g.id, s.cmd.Process.Pid, holder.Process.Pid)
	select {}
}

// mainT lets a process that is not a test use the helpers of tests.
type mainT struct{ testing.TB }

func (*mainT) Helper()                      {}
func (*mainT) Cleanup(func())               {}
func (*mainT) Failed() bool                 { return false }
func (*mainT) Fatal(args ...any)            { fmt.Fprintln(os.Stderr, args...); os.Exit(1) }
func (*mainT) Fatalf(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...); os.Exit(1) }

// The guests of one connection end with it, those of another go on.
func TestGuestsEndWithTheirConnection(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	one, two := dialAs(t, socket, 0, gid), dialAs(t, socket, 0, gid)
	one.hello(t)
	two.hello(t)
	g1, g2 := one.spawn(t, "same", nil), two.spawn(t, "same", nil)
	_ = one.conn.Close()
	waitGone(t, scaled(time.Second), g1.id)
	if got := g2.run(t, "post(2)"); got != "2" {
		t.Errorf("posted %s", got)
	}
	list := string(two.must(t, map[string]any{"op": "list"}).OK)
	if strings.Contains(list, g1.id) || !strings.Contains(list, g2.id) {
		t.Errorf("list: %s", list)
	}
}

// A connection that ends while its guest is being made leaves nothing.
func TestConnectionEndsDuringSpawn(t *testing.T) {
	socket, gid := sharedSocket(t)
	s := startShared(t, socket)
	before := withZygote(t, s, dialAs(t, socket, 0, gid))
	for i := range 10 {
		c := dialAs(t, socket, 0, gid)
		c.hello(t)
		if _, err := c.post(map[string]any{"op": "spawn", "name": "brief"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 7 * time.Millisecond)
		_ = c.conn.Close()
	}
	for range 500 {
		if slices.Equal(guestsIn(s.runDir), before) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left: %v, and before there was %v", guestsIn(s.runDir), before)
}
