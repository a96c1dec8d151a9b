package supervisor

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// A zombie that nobody waits for is taken when it is old enough, and not before; one
// with an owner is left to it.
func TestReapTakesOldZombiesOnly(t *testing.T) {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var orphan process
	for range 1000 {
		if state, start, err := processStat(pid); err == nil && state == 'Z' {
			orphan = process{pid, start}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if orphan.pid == 0 {
		t.Fatal("the child did not end")
	}
	log, seen, now := logrus.New(), make(map[process]time.Time), time.Now()
	reap(seen, now, log)
	reap(seen, now.Add(orphanAge-time.Second), log)
	if state, _, err := processStat(pid); err != nil || state != 'Z' {
		t.Fatalf("a young zombie was taken: %c, %v", state, err)
	}
	owned := exec.Command("/bin/sh", "-c", "exit 7")
	if err := owned.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	reap(seen, now.Add(orphanAge), log)
	if _, _, err := processStat(pid); err == nil {
		t.Error("an old zombie was not taken")
	}
	if err := owned.Wait(); err == nil || owned.ProcessState.ExitCode() != 7 {
		t.Errorf("the owner of a child lost its status: %v", err)
	}
	reap(seen, now.Add(orphanAge), log)
	if len(seen) > 0 {
		t.Errorf("still remembered: %v", seen)
	}
}
