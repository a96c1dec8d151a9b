// Package testroot makes a root file system with a shell and a few programs from
// those of the host, for tests that start containers and need no Python. It is for
// tests only.
package testroot

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Make fills root: /bin with sh, cat, id, ls, sleep and the extra programs, the
// libraries they need, and empty directories to mount on. Programs and libraries are
// below /usr, where psi's own guests may execute them.
func Make(root string, extra ...string) error {
	for _, d := range []string{"proc", "dev", "tmp", "etc", "sys", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return err
		}
	}
	for _, program := range append([]string{"sh", "cat", "id", "ls", "sleep"}, extra...) {
		path, err := exec.LookPath(program)
		if err != nil {
			return fmt.Errorf("making a root for tests: %w", err)
		}
		if err := add(root, path, filepath.Join("/bin", program)); err != nil {
			return fmt.Errorf("making a root for tests: %w", err)
		}
	}
	return nil
}

// add copies a program, its loader and the libraries it needs.
func add(root, path, as string) error {
	if err := copyFile(path, filepath.Join(root, as)); err != nil {
		return err
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		loader := strings.TrimRight(string(name), "\x00")
		if err := copyFile(loader, filepath.Join(root, loader)); err != nil {
			return err
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	for _, name := range names {
		library, err := find(name)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(root, library)); err == nil {
			continue
		}
		if err := add(root, library, library); err != nil {
			return err
		}
	}
	return nil
}

// find looks for a library where the loader looks.
func find(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/", "/lib64/", "/lib/", "/usr/lib/"} {
		if found, err := filepath.Glob(pattern + name); err == nil && len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("library %s is not on this machine", name)
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
