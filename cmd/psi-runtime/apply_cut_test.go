package main

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who attends the container is killed while it changes the policy, perhaps with the container
// frozen: nobody knows what holds it then, and it ends.
func TestApplyAndKilled(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			subjects(t, func(t *testing.T, s *subject, before, after string) {
				pid, file := s.attendant(), write(t, "policy.yml", after)
				asking := make(chan result)
				go func() { asking <- s.run("policy", "apply", s.id, file) }()
				time.Sleep(delay)
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if r := <-asking; r.code != 0 && !strings.Contains(r.err, "attends the container") && !strings.Contains(r.err, "has ended") {
					t.Errorf("exit code %d: %q", r.code, r.err)
				}
				eventually(t, "it has ended", func() bool { return strings.Contains(s.ok("state", s.id), `"status": "stopped"`) })
			})
		})
	}
}

// Who asks for another policy goes away meanwhile: the container has all of it, or nothing.
func TestApplyForNobody(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		after = strings.Replace(after, "open_files: 50", "open_files: 60", 1)
		looks := map[string]string{}
		for range 2 { // the first time what is written down changes its order
			for _, policy := range []string{after, before} {
				if failed := s.apply(policy); failed != "" {
					t.Fatal(failed)
				}
				looks[policy] = s.look()
			}
		}
		file := write(t, "policy.yml", after)
		seen := map[string]int{}
		for delay := range 10 {
			if failed := s.apply(before); failed != "" {
				t.Fatal(failed)
			}
			cmd := s.command("policy", "apply", s.id, file)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(delay) * 4 * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			s.ok("policy", "apply", "--dry-run", s.id, file) // one after another
			switch look := s.look(); look {
			case looks[before]:
				seen["before"]++
			case looks[after]:
				seen["after"]++
			default:
				t.Fatalf("killed after %d ms: it has neither policy:\n%s\nwith the one:\n%s\nwith the other:\n%s", 4*delay, look, looks[before], looks[after])
			}
		}
		t.Log(seen)
	})
}
