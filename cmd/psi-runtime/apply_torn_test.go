package main

import (
	"fmt"
	"os"
	"path/filepath"
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
