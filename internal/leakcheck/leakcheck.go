// Package leakcheck fails a test that leaves something of psi's behind: a
// process, a mount, a cgroup, a file below /run/psi, a namespace, a file
// descriptor, an eBPF program or pin, a temporary file.
//
//	func TestSpawn(t *testing.T) {
//		leakcheck.Check(t)
//		…
//	}
//
// Check takes a snapshot, and another when the test and its other clean-ups are
// over; what is in the second only must go within a few seconds. Tests of several
// packages run at the same time, of other checkouts too, and so may a supervisor: what belongs to a
// living process (see internal/container) that is not below this one, or lies where only another
// run makes things, is somebody else's and is not counted. scripts/check-leaks counts everything.
//
// It is for tests only, and needs root to see everything.
package leakcheck

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long the kernel and dying processes get to clean up.
const patience = 5 * time.Second

// Check registers the comparison with the test. Call it first, so that it runs
// after every other clean-up. From then on orphans of this process become its
// children.
func Check(t testing.TB) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatalf("leakcheck: becoming the reaper of orphans: %v", err)
	}
	before, err := take()
	if err != nil {
		t.Fatalf("leakcheck: %v", err)
	}
	t.Cleanup(func() {
		if left := settle(t, before); len(left) > 0 {
			t.Errorf("leakcheck: the test left behind:\n\t%s", strings.Join(left, "\n\t"))
		}
	})
}

// settle compares until nothing is left or patience runs out. What appears after
// the first look is not the test's, for the test is over.
func settle(t testing.TB, before snapshot) []string {
	t.Helper()
	var left []string
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		reapOrphans()
		now, err := take()
		if err != nil {
			t.Fatalf("leakcheck: %v", err)
		}
		found := now.beyond(before)
		if left == nil {
			left = found
		}
		left = slices.DeleteFunc(left, func(thing string) bool { return !slices.Contains(found, thing) })
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(pause)
	}
}

// snapshot is everything of one moment: kind of thing → name → how it is shown.
type snapshot map[string]map[string]string

// sources are the things that are looked at.
func sources() map[string]func(foreign) (map[string]string, error) {
	return map[string]func(foreign) (map[string]string, error){
		"process":        processes,
		"mount":          mounts,
		"cgroup":         cgroups,
		"run directory":  runFiles,
		"descriptor":     descriptors,
		"eBPF program":   programs,
		"eBPF pin":       pins,
		"temporary file": tempFiles,
	}
}

func take() (snapshot, error) {
	others, err := findForeign()
	if err != nil {
		return nil, err
	}
	s := snapshot{}
	for kind, list := range sources() {
		found, err := list(others)
		if err != nil {
			return nil, fmt.Errorf("looking for leaked things (%s): %w", kind, err)
		}
		s[kind] = found
	}
	return s, nil
}

// beyond lists what s has and before has not.
func (s snapshot) beyond(before snapshot) []string {
	var out []string
	for kind, found := range s {
		for name, shown := range found {
			if _, had := before[kind][name]; !had {
				out = append(out, kind+": "+shown)
			}
		}
	}
	slices.Sort(out)
	return out
}
