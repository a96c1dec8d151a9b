package rootfs

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// writeDir writes the tree as a directory. Owners become 0:0 if the caller is
// root; otherwise they stay the caller's, which is 0:0 in its user namespace.
func writeDir(ctx context.Context, root string, t *tree) error {
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("creating root filesystem: %w", err)
	}
	entries := t.sorted()
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("writing root filesystem: %w", err)
		}
		if err := writeEntry(filepath.Join(root, e.path), e); err != nil {
			return err
		}
	}
	// Times last and from the leaves up: each new entry touches its directory.
	for _, e := range slices.Backward(entries) {
		if err := finishEntry(filepath.Join(root, e.path), e); err != nil {
			return err
		}
	}
	return finishEntry(root, &entry{kind: typeDir, mode: 0o755})
}

func writeEntry(at string, e *entry) error {
	switch e.kind {
	case typeDir:
		if err := os.Mkdir(at, 0o700); err != nil {
			return fmt.Errorf("writing root filesystem: %w", err)
		}
		return nil
	case typeLink:
		if err := os.Symlink(e.link, at); err != nil {
			return fmt.Errorf("writing root filesystem: %w", err)
		}
		return nil
	}
	file, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing root filesystem: %w", err)
	}
	if err := e.copyTo(file); err != nil {
		file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("writing root filesystem: %w", err)
	}
	return nil
}

// finishEntry gives an entry its owner, mode (whatever the umask) and time.
func finishEntry(at string, e *entry) error {
	if os.Geteuid() == 0 {
		if err := os.Lchown(at, 0, 0); err != nil {
			return fmt.Errorf("setting owner: %w", err)
		}
	}
	if e.kind != typeLink {
		if err := os.Chmod(at, fileMode(e.mode)); err != nil {
			return fmt.Errorf("setting mode: %w", err)
		}
	}
	stamp := unix.NsecToTimespec(fixedTime().UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting time of %s: %w", at, err)
	}
	return nil
}

// fileMode turns a mode as chmod(1) writes it (0o1777) into Go's.
func fileMode(mode fs.FileMode) fs.FileMode {
	goMode := mode & fs.ModePerm
	if mode&0o1000 != 0 {
		goMode |= fs.ModeSticky
	}
	return goMode
}
