// Package testroot makes a root file system with a shell and a few programs from
// those of the host, for tests that start containers and need no Python. It is for
// tests only.
package testroot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Make fills root: /bin with a shell and friends, the libraries they need, and
// empty directories to mount on.
func Make(root string) error {
	for _, d := range []string{"proc", "dev", "tmp", "etc", "sys", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, program := range []string{"sh", "sleep", "cat", "id", "ls", "dd", "mkdir", "touch", "stty", "readlink"} {
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

// add copies a program and what ldd says it needs.
func add(root, path, as string) error {
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	if err := copyFile(path, filepath.Join(root, as)); err != nil {
		return err
	}
	for _, word := range strings.Fields(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		if err := copyFile(word, filepath.Join(root, word)); err != nil {
			return err
		}
	}
	return nil
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
