package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What was done of a change that fails cannot be taken back: its last step finds no space, and the
// limits, which were changed first and are taken back last, cannot be written any more. Nobody
// knows what holds the container then, and it ends.
func TestApplyThatCannotBeTakenBack(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, _, after string) {
		c := s.load()
		defer c.Close()
		place, err := c.Cgroup("pids")
		if err != nil { // there is one for all
			place, err = c.Cgroup("")
		}
		if err != nil {
			t.Fatal(err)
		}
		limit := filepath.Join(place, "pids.max")
		release := fill(t, s.root)
		file := write(t, "policy.yml", after)
		for range 20 {
			asking := make(chan result)
			go func() { asking <- s.run("policy", "apply", s.id, file) }()
			var r result
			resume, within := s.stopWhen(func() bool { return says(limit, "40") }, 5*time.Second)
			if !within { // too late: it was taken back
				resume()
				<-asking
				continue
			}
			readOnly(t, limit, func() { resume(); r = <-asking })
			if r.code != 1 || !strings.Contains(r.err, "container "+s.id+" was killed, because that could not be taken back: ") || !strings.Contains(r.err, "/pids.max: ") {
				t.Errorf("exit code %d: %q", r.code, r.err)
			}
			release()
			eventually(t, "it has ended", func() bool { return strings.Contains(s.ok("state", s.id), `"status": "stopped"`) })
			return
		}
		t.Error("never was it stopped between a change and its end")
	})
}

// stopWhen stops who attends the container once something is so, and reports whether it is so then.
func (s *subject) stopWhen(is func() bool, patience time.Duration) (resume func(), still bool) {
	s.t.Helper()
	attendant := s.attendant()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			return func() {}, false
		}
	}
	if err := unix.Kill(attendant, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "who attends the container stands still", func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", attendant))
		return err == nil && strings.Contains(string(data), ") T ")
	})
	return func() { _ = unix.Kill(attendant, unix.SIGCONT) }, is()
}

// says reports whether a file has such a line, and nothing else.
func says(file, line string) bool {
	data, err := os.ReadFile(file)
	return err == nil && strings.TrimSpace(string(data)) == line
}

// What comes last cannot be taken back, and fails after all: somebody has lowered a process's
// limit further than the policy does, just now, and to raise that takes CAP_SYS_RESOURCE. Nobody
// knows what holds the container then, and it ends.
func TestApplyThatCannotBeFinished(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	var many []string // so that there is time
	for i := range 300 {
		many = append(many, fmt.Sprintf("'10.0.0.1:%d'", 1000+2*i))
	}
	s := &subject{line: newLine(t)}
	s.clean()
	next := write(t, "policy.yml", fmt.Sprintf("{open_files: 50, tcp: [%s]}", strings.Join(many, ", ")))
	for i := range 20 {
		s.id = fmt.Sprintf("late%d", i)
		s.runs("{open_files: 60}")
		asking := make(chan result)
		go func() { asking <- s.run("policy", "apply", s.id, next) }()
		disturbed := s.disturb()
		r := <-asking
		if !disturbed || r.code == 0 { // too early, or too late
			continue
		}
		if !strings.Contains(r.err, "container "+s.id+" was killed, because its new policy could not be put into force: RLIMIT_NOFILE of process") {
			t.Errorf("exit code %d: %q", r.code, r.err)
		}
		eventually(t, "it has ended", func() bool { return strings.Contains(s.ok("state", s.id), `"status": "stopped"`) })
		return
	}
	t.Error("never was it stopped before the end of a change")
}

// disturb stops who attends the container once that is frozen, and lowers the limit of its first
// process. It reports whether the policy had not been written down before.
func (s *subject) disturb() bool {
	s.t.Helper()
	c := s.load()
	defer c.Close()
	group, err := c.UnifiedCgroup()
	if err != nil {
		s.t.Fatal(err)
	}
	state, attendant := filepath.Join(s.root, s.id, "state.json"), s.attendant()
	before, _ := os.ReadFile(state)
	for end := time.Now().Add(10 * time.Second); ; {
		events, _ := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if strings.Contains(string(events), "frozen 1") {
			break
		}
		if after, _ := os.ReadFile(state); string(after) != string(before) || time.Now().After(end) {
			return false
		}
	}
	time.Sleep(time.Millisecond)
	if err := unix.Kill(attendant, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = unix.Kill(attendant, unix.SIGCONT) }()
	after, _ := os.ReadFile(state)
	if string(after) != string(before) {
		return false
	}
	if err := unix.Prlimit(c.InitPID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 40, Max: 40}, nil); err != nil {
		s.t.Fatal(err)
	}
	return true
}
