package container

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A guest's root is an overlay: the bundle's root below, shared and never
// written, and a tiny tmpfs above, the guest's alone. Both are mounted on one
// directory, the overlay over the tmpfs, while the container is made, and detached
// from our mount namespace right after, so nothing of it is left when the guest has
// gone. (The empty directory stays: libcontainer changes into it for every exec.
// Guests that a zygote forks come together on the zygote's, one after another.)
// The layers are given as file descriptors: the guest can read its own mountinfo,
// and the host's paths are none of its business.
//
// Files that belong to no id of the guest cannot be changed by its init, not
// even by the root of its user namespace, so every mount point that is missing
// in the lower root is made here, in the upper one.

const (
	readOnlyUpper = "mode=0711,size=16m,nr_inodes=32768"
	writableUpper = "mode=0711,size=64m,nr_inodes=32768"
)

// rootMode is the mode of the directory that a root is mounted on.
const rootMode = 0o711

// mountRoot mounts an overlay of the directories in lower, the uppermost first, on at, which is
// dir or dir/root: in that both are detached at once, and to detach something waits for all
// processors. uid owns the top directory if the guest may write there.
func mountRoot(dir, at string, lower []string, writable bool, uid int) error {
	options := readOnlyUpper
	if writable {
		options = writableUpper
	}
	if err := unix.Mount("psi", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return &os.PathError{Op: "mounting tmpfs on", Path: dir, Err: err}
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, path := range []string{upper, work, at} {
		if path == dir {
			continue
		}
		if err := mkdirMode(path, 0o755); err != nil {
			return err
		}
	}
	var layers []string
	for _, path := range append([]string{upper, work}, lower...) {
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening a layer of the root: %w", err)
		}
		defer f.Close()
		layers = append(layers, fdPath(f))
	}
	if writable {
		if err := os.Lchown(upper, uid, uid); err != nil {
			return err
		}
	}
	data := "lowerdir=" + strings.Join(layers[2:], ":") + ",upperdir=" + layers[0] + ",workdir=" + layers[1] + ",xino=off"
	if err := unix.Mount("psi", at, "overlay", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mounting an overlay of %s: %w", strings.Join(lower, " over "), err)
	}
	return nil
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// detachRoot detaches everything mounted on dir. It may be called again, and for a
// directory that was never made.
func detachRoot(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT {
			return nil // nothing is mounted there (any more)
		}
		if err != nil {
			return &os.PathError{Op: "unmounting", Path: dir, Err: err}
		}
	}
}

// MountPoint is a file or directory that must exist in a guest's root so that
// something can be mounted on it.
type MountPoint struct {
	Path string // absolute, as the guest sees it
	Dir  bool
}

// missingMountPoints lists what the spec's mounts need and root lacks. A mount
// below an earlier one is not the root's concern.
func missingMountPoints(mounts []specs.Mount) []MountPoint {
	var points []MountPoint
	var covered []string
	for _, m := range mounts {
		dest := filepath.Clean("/" + m.Destination)
		if !below(dest, covered) {
			points = append(points, MountPoint{Path: dest, Dir: !isFileBind(m)})
		}
		covered = append(covered, dest)
	}
	return points
}

func below(path string, dirs []string) bool {
	for _, d := range dirs {
		if path != d && strings.HasPrefix(path, strings.TrimSuffix(d, "/")+"/") {
			return true
		}
	}
	return false
}

func isFileBind(m specs.Mount) bool {
	if !isBind(m) {
		return false
	}
	st, err := os.Stat(m.Source)
	return err == nil && !st.IsDir()
}

func isBind(m specs.Mount) bool {
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// fillRoot makes mount points and writes files below root. Symlinks in the root
// are followed as the guest would follow them, never out of it.
func fillRoot(root string, points []MountPoint, files map[string][]byte) error {
	for _, p := range points {
		if err := makePoint(root, p); err != nil {
			return fmt.Errorf("making mount point %s: %w", p.Path, err)
		}
	}
	for name, data := range files {
		path, err := securejoin.SecureJoin(root, name)
		if err == nil {
			err = mkdirMode(filepath.Dir(path), 0o755)
		}
		if err == nil && !has(path, data) {
			err = os.WriteFile(path, data, 0o644)
		}
		if err != nil {
			return fmt.Errorf("writing %s into the root: %w", name, err)
		}
	}
	return nil
}

// has says whether a file is what it is to be: to write it would copy it up first.
func has(path string, data []byte) bool {
	was, err := os.ReadFile(path)
	return err == nil && bytes.Equal(was, data)
}

func makePoint(root string, p MountPoint) error {
	path, err := securejoin.SecureJoin(root, p.Path)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if p.Dir {
		return mkdirMode(path, 0o755)
	}
	if err := mkdirMode(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// insideBundle refuses a relative root.path whose links lead out of the bundle: what is below
// it would be shown to the guest. An absolute path says openly what it shows.
func insideBundle(bundle, root string) error {
	if filepath.IsAbs(root) {
		return nil
	}
	dir, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return fmt.Errorf("finding the bundle: %w", err)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(bundle, root))
	if err != nil {
		return fmt.Errorf("finding the root: %w", err)
	}
	if inside, err := filepath.Rel(dir, real); err != nil || !filepath.IsLocal(inside) {
		return fmt.Errorf("root.path %q leads out of the bundle, to %s: name that directory by its absolute path if it is meant", root, real)
	}
	return nil
}
