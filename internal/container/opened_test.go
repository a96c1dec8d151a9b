package container

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A file is known by its own name, whatever that has in it.
func TestMappings(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]OpenedFile{
		"two\nlines":   {Read: true},
		`two\012lines`: {Read: true, Write: true},
		" /a name":     {Read: true},
	} {
		want.PID, want.Path = os.Getpid(), filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(want.Path), 0o755); err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(want.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := file.Truncate(1); err != nil {
			t.Fatal(err)
		}
		prot := unix.PROT_READ
		if want.Write {
			prot |= unix.PROT_WRITE
		}
		page, err := unix.Mmap(int(file.Fd()), 0, 1, prot, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(page)
		mapped, err := mappings(os.Getpid())
		if err != nil || !slices.Contains(mapped, want) {
			t.Errorf("%q is not among %+v, %v", name, mapped, err)
		}
	}
}
