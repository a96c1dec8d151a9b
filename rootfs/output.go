package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The formats of Options.Format.
const (
	formatDir = "dir"
	formatTar = "tar"
	formatOCI = "oci"
)

// fixedTime is the time of every entry. It is late enough for zip archives,
// which begin in 1980.
func fixedTime() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// output is the place where a root appears, at once and complete: everything
// is made in a scratch directory beside it and then renamed.
type output struct {
	path   string
	format string
	work   string   // scratch directory, locked while in use
	lock   *os.File // the scratch directory, held with flock
}

// openOutput checks that path may be replaced and makes the scratch directory.
func openOutput(path, format string) (*output, error) {
	o := &output{path: path, format: format}
	if err := o.checkReplaceable(); err != nil {
		return nil, err
	}
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("creating directory of output: %w", err)
	}
	o.removeAbandoned()
	work, err := os.MkdirTemp(parent, o.scratchPrefix())
	if err != nil {
		return nil, fmt.Errorf("creating scratch directory: %w", err)
	}
	o.work = work
	if o.lock, err = lockDir(work); err != nil {
		o.discard()
		return nil, fmt.Errorf("locking scratch directory %s: %w", work, err)
	}
	return o, nil
}

func (o *output) scratchPrefix() string { return "." + filepath.Base(o.path) + ".psi-build-" }

// lockDir takes a directory's lock without waiting. It ends with the process.
func lockDir(dir string) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// removeAbandoned removes scratch directories whose builder was killed.
func (o *output) removeAbandoned() {
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(o.path), o.scratchPrefix()+"*"))
	for _, dir := range found {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use by another build
		}
		_ = os.RemoveAll(dir) // what remains is tried again by the next build
		lock.Close()
	}
}

// discard removes the scratch directory.
func (o *output) discard() {
	if o.work != "" {
		_ = os.RemoveAll(o.work) // what remains is removed by the next build
	}
	if o.lock != nil {
		o.lock.Close()
	}
}

// isFile says whether the output is one file and not a directory.
func (o *output) isFile() bool {
	return o.format == formatTar || o.format == formatOCI && strings.HasSuffix(o.path, ".tar")
}

// checkReplaceable refuses to replace what no build has made.
func (o *output) checkReplaceable() error {
	info, err := os.Lstat(o.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("checking output: %w", err)
	}
	if o.isFile() {
		return o.checkArchive(info)
	}
	if !info.IsDir() {
		return fmt.Errorf("writing root filesystem: %s exists and is not a directory: remove it or choose another -o", o.path)
	}
	list, err := os.ReadDir(o.path)
	if err != nil {
		return fmt.Errorf("checking output: %w", err)
	}
	mark := manifestPath
	if o.format == formatOCI {
		mark = layoutMark
	}
	if _, err := os.Stat(filepath.Join(o.path, mark)); len(list) > 0 && err != nil {
		return fmt.Errorf("writing root filesystem: directory %s is not empty and holds no psi root filesystem (no %s): empty it or choose another -o", o.path, mark)
	}
	return nil
}

// checkArchive refuses to replace a file that is not empty nor a tar archive.
func (o *output) checkArchive(info os.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("writing root filesystem: %s exists and is not a file: remove it or choose another -o", o.path)
	}
	if info.Size() == 0 {
		return nil
	}
	file, err := os.Open(o.path)
	if err != nil {
		return fmt.Errorf("checking output: %w", err)
	}
	defer file.Close()
	const magic, offset = "ustar", 257
	var head [len(magic)]byte
	if _, err := file.ReadAt(head[:], offset); err != nil || string(head[:]) != magic {
		return fmt.Errorf("writing root filesystem: %s exists and is not a tar archive: remove it or choose another -o", o.path)
	}
	return nil
}

// write makes the output in the scratch directory and moves it to its place.
func (o *output) write(ctx context.Context, t *tree, python interpreter, r Report) error {
	made := filepath.Join(o.work, "output")
	var err error
	switch o.format {
	case formatDir:
		err = writeDir(ctx, made, t)
	case formatTar:
		err = writeTarFile(ctx, made, t)
	case formatOCI:
		err = writeImage(ctx, made, t, python, r)
		if err == nil && o.isFile() {
			layout := made
			made = filepath.Join(o.work, "archive")
			err = archiveDir(layout, made)
		}
	}
	if err != nil {
		return err
	}
	return o.place(made)
}

// place renames made to the output. A directory already there is exchanged in
// one step, so that there is never a moment without a root.
func (o *output) place(made string) error {
	// Minutes may have passed, and what is replaced is deleted.
	if err := o.checkReplaceable(); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, o.path, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = os.Rename(made, o.path)
	case errors.Is(err, unix.EINVAL): // a file system that cannot exchange
		err = os.Rename(o.path, filepath.Join(o.work, "replaced"))
		if err == nil {
			err = os.Rename(made, o.path)
		}
	}
	if err != nil {
		return fmt.Errorf("moving root filesystem to %s: %w", o.path, err)
	}
	return nil // the old one, if any, now lies in the scratch directory
}
