package container

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A journal is used again, by a container of the same owner: empty, locked all the while, never
// in the place of another one, and gone with its owner, who may have been killed.
func TestJournalsAreUsedAgain(t *testing.T) {
	run := runDir(t.TempDir())
	owner, err := newOwner(run)
	if err != nil {
		t.Fatal(err)
	}
	newEntry := func(id string) *entry {
		return &entry{ID: id, Root: owner.dir, path: run.journalPath(owner.dir, id), owner: owner}
	}
	claim := func(id string) *entry {
		t.Helper()
		e := newEntry(id)
		if err := errors.Join(e.claim(), e.write()); err != nil {
			t.Fatal(err)
		}
		return e
	}
	first, other := claim("first"), claim("other")
	was, err := first.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.forget(run); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(first.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a forgotten journal: %v", err)
	}
	if err := newEntry("other").claim(); !errors.Is(err, ErrExist) {
		t.Errorf("the name of another one: %v, want ErrExist", err)
	}
	if e, err := loadEntry(other.path); err != nil || e.ID != "other" {
		t.Errorf("the other one then: %v, %v", e, err)
	}

	if err := other.forget(run); err != nil {
		t.Fatal(err)
	}
	second := newEntry("second")
	if err := second.claim(); err != nil {
		t.Fatal(err)
	}
	if e, err := loadEntry(second.path); err != nil || e.ID != "" {
		t.Errorf("a journal that is used again begins with %v, %v: want nothing", e, err)
	}
	if is, err := second.file.Stat(); err != nil || os.SameFile(was, is) {
		t.Errorf("the spare that could not be used is used again: %v", err)
	}
	if _, err := takeEntry(second.path); !errors.Is(err, ErrOwned) {
		t.Errorf("taking a journal that is used again: %v, want ErrOwned", err)
	}
	if err := second.forget(run); err != nil {
		t.Fatal(err)
	}
	owner.release() // as when it is killed
	if n, err := sweepOwners(run); n != 1 || err != nil {
		t.Errorf("%d owners swept, %v; want 1", n, err)
	}
	if left, _ := filepath.Glob(string(run) + "/*@*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
