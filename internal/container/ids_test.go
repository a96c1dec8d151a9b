package container

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestIDsAreUnique: 50 allocations at once, of both sizes, none overlapping.
func TestIDsAreUnique(t *testing.T) {
	f := newFixture(t)
	run := runDir(f.run)
	if err := os.MkdirAll(f.run, 0o711); err != nil {
		t.Fatal(err)
	}
	const n = 50
	containers := make([]*Container, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range containers {
		wg.Go(func() {
			c := &Container{run: run, auto: true, id: fmt.Sprint(i)}
			c.entry = entry{ID: c.id, Root: f.root(), path: run.journalPath(f.root(), c.id), IDs: idRange{Size: 1}}
			if i%5 == 0 {
				c.entry.IDs.Size = blockSize
			}
			containers[i], errs[i] = c, errors.Join(c.entry.claim(), c.claimIDs())
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, a := range containers {
		for _, b := range containers[:i] {
			if a.entry.IDs.First < b.entry.IDs.First+b.entry.IDs.Size && b.entry.IDs.First < a.entry.IDs.First+a.entry.IDs.Size {
				t.Errorf("ranges %+v and %+v overlap", a.entry.IDs, b.entry.IDs)
			}
		}
		if r := a.entry.IDs; r.First < FirstID || r.First+r.Size > FirstID+idCount {
			t.Errorf("range %+v is outside %d + 2^24", r, FirstID)
		}
	}
	for _, c := range containers {
		if err := c.entry.undo(run); err != nil {
			t.Error(err)
		}
	}
}

func TestTakenIDIsNotGivenTwice(t *testing.T) {
	f := newFixture(t)
	run := runDir(f.run)
	if err := os.MkdirAll(f.run, 0o711); err != nil {
		t.Fatal(err)
	}
	var entries [2]*entry
	for i := range entries {
		e := &entry{ID: fmt.Sprint(i), Root: f.root(), IDs: idRange{FirstID, 1}, path: run.journalPath(f.root(), fmt.Sprint(i))}
		if err := e.claim(); err != nil {
			t.Fatal(err)
		}
		entries[i] = e
	}
	a, b := entries[0], entries[1]
	if err := a.claimIDs(run); err != nil {
		t.Fatal(err)
	}
	if err := b.claimIDs(run); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second claim: %v", err)
	}
	if err := b.undo(run); err != nil { // which names the range, and does not have it
		t.Error(err)
	}
	if _, err := os.Lstat(a.IDs.file(run)); err != nil {
		t.Errorf("somebody else could release it: %v", err)
	}
	if err := a.undo(run); err != nil {
		t.Error(err)
	}
}

func TestWithIDs(t *testing.T) {
	s := autoSpec("true")
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: placeholder, Size: 1}}
	other := []specs.LinuxIDMapping{{ContainerID: 5, HostID: 99, Size: 1}}
	s.Mounts = []specs.Mount{{UIDMappings: ids, GIDMappings: ids}, {UIDMappings: other}, {}}
	out := withIDs(s, placeholder, idRange{FirstID + 7, 1}, 1000, 100)
	if got := out.Linux.UIDMappings[0]; got != (specs.LinuxIDMapping{ContainerID: 0, HostID: FirstID + 7, Size: 1}) {
		t.Errorf("container's mapping %+v", got)
	}
	m := out.Mounts[0]
	if m.UIDMappings[0] != (specs.LinuxIDMapping{ContainerID: 1000, HostID: FirstID + 7, Size: 1}) ||
		m.GIDMappings[0] != (specs.LinuxIDMapping{ContainerID: 100, HostID: FirstID + 7, Size: 1}) {
		t.Errorf("client's mount %+v", m)
	}
	if out.Mounts[1].UIDMappings[0] != other[0] || out.Mounts[2].UIDMappings != nil {
		t.Errorf("other mounts %+v", out.Mounts[1:])
	}
	if s.Linux.UIDMappings[0].HostID != placeholder || s.Mounts[0].UIDMappings[0].ContainerID != 0 {
		t.Error("the caller's spec was changed")
	}
}
