package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// backupSuffix names the copy of a file as it was before psi-runtime was first installed.
const backupSuffix = ".before-psi"

// Change is what is to be done to one file.
type Change struct {
	Path    string // of the file itself, no link
	Before  []byte // nil: there is no such file
	After   []byte // nil: there is to be none
	Restart string // what makes the engine see it

	removal bool
}

// Empty reports that there is nothing to do.
func (c Change) Empty() bool {
	return bytes.Equal(c.Before, c.After) && (c.Before == nil) == (c.After == nil)
}

// Backup is where the file's first state is kept.
func (c Change) Backup() string { return c.Path + backupSuffix }

// restored replaces the planned removal by the backup where nothing else was changed since: where
// taking our part out of the backup with it added leaves what taking it out of the file does.
func (c Change) restored(f format) (Change, error) {
	backup, err := os.ReadFile(c.Backup())
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return Change{}, fmt.Errorf("reading the backup: %w", err)
	}
	added, err := f.add(backup, "/any/program")
	if err != nil {
		return c, nil // somebody has changed the backup: the removal stands
	}
	rest, err := f.remove(added)
	if err == nil && bytes.Equal(rest, c.After) && (rest == nil) == (c.After == nil) {
		c.After = backup
	}
	return c, nil
}

// Apply makes the change. The first state of a file is kept beside it, and goes when a removal
// has brought it back.
func (c Change) Apply() error {
	if c.Empty() {
		return nil
	}
	if !c.removal && c.Before != nil {
		if err := c.keep(); err != nil {
			return err
		}
	}
	if c.After == nil {
		if err := os.Remove(c.Path); err != nil {
			return fmt.Errorf("removing the configuration: %w", err)
		}
	} else if err := replace(c.Path, c.After); err != nil {
		return err
	}
	if !c.removal {
		return nil
	}
	if backup, err := os.ReadFile(c.Backup()); err == nil && bytes.Equal(backup, c.After) {
		if err := os.Remove(c.Backup()); err != nil {
			return fmt.Errorf("removing the backup: %w", err)
		}
	}
	return nil
}

// keep writes the backup, unless there is one: the first state is what counts.
func (c Change) keep() error {
	if _, err := os.Lstat(c.Backup()); err == nil {
		return nil
	}
	info, err := os.Stat(c.Path)
	if err != nil {
		return fmt.Errorf("backing up the configuration: %w", err)
	}
	if err := os.WriteFile(c.Backup(), c.Before, info.Mode().Perm()); err != nil {
		return fmt.Errorf("backing up the configuration: %w", err)
	}
	return nil
}

// replace writes a file in one step, with the mode of the one that it replaces: an engine that reads
// it meanwhile sees the old one or the new one.
func replace(path string, data []byte) (err error) {
	mode := os.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".psi-")
	if err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(temporary.Name()) //nolint:errcheck // the error that counts is there already
		}
	}()
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Chmod(mode), temporary.Sync(), temporary.Close())
	if err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}
