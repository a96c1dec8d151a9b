package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// assembly makes the mounts of a guest that a zygote has forked: what libcontainer's init does
// in a cold one (prepareRootfs and finalizeRootfs there), from outside and with the same result.
// It runs on a thread in the guest's mount namespace, which is a copy of the zygote's: a root
// with devices in /dev, a /proc that is not used, and an empty /tmp, where the guest's root is
// put together. In the end the guest has nothing else.
type assembly struct {
	config *configs.Config
	id     uint32   // the guest's host id
	root   *os.File // its root, attached to nothing
	proc   *os.File // its /proc, likewise
}

// assemblyRoot is where in the zygote's root a guest's comes together.
const assemblyRoot = "/tmp"

func (a assembly) run() error {
	if err := attach(a.root, assemblyRoot); err != nil {
		return err
	}
	for _, m := range a.config.Mounts {
		if err := a.mount(m); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Destination, err)
		}
	}
	if err := a.devices(); err != nil {
		return fmt.Errorf("making /dev: %w", err)
	}
	for _, p := range a.config.ReadonlyPaths {
		if err := readOnlyPath(assemblyRoot + p); err != nil {
			return err
		}
	}
	if err := a.maskPaths(a.config.MaskPaths); err != nil {
		return err
	}
	for _, m := range a.config.Mounts {
		if m.Device == "tmpfs" && m.Flags&unix.MS_RDONLY != 0 {
			if err := remount(assemblyRoot+m.Destination, m.Flags); err != nil {
				return err
			}
		}
	}
	if a.config.Readonlyfs {
		if err := remount(assemblyRoot, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY); err != nil {
			return err
		}
	}
	return pivot(assemblyRoot)
}

// attach puts a detached mount on a directory.
func attach(tree *os.File, dir string) error {
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	return nil
}

// mount makes one mount of the specification. psi's own have no other kinds.
func (a assembly) mount(m *configs.Mount) error {
	to := assemblyRoot + path.Clean(m.Destination)
	switch m.Device {
	case "proc":
		return attach(a.proc, to)
	case "tmpfs":
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		data := fmt.Sprintf("%s,uid=%d,gid=%d", m.Data, a.id, a.id)
		// Read-only comes last: /dev is filled first.
		if err := unix.Mount("tmpfs", to, "tmpfs", uintptr(m.Flags&^unix.MS_RDONLY), data); err != nil {
			return &os.PathError{Op: "mount tmpfs", Path: to, Err: err}
		}
		return nil
	}
	return fmt.Errorf("a guest of a zygote has no mounts of type %q", m.Device)
}

// devices fills /dev as libcontainer does in a user namespace: nodes of the host's are bound.
func (a assembly) devices() error {
	// What this thread makes is the guest's.
	_, _ = unix.Setfsgid(int(a.id)), unix.Setfsuid(int(a.id))
	defer func() { _, _ = unix.Setfsuid(0), unix.Setfsgid(0) }()
	for _, d := range a.config.Devices {
		if d.Path == "/dev/ptmx" {
			continue
		}
		to := assemblyRoot + d.Path
		if err := unix.Mknod(to, unix.S_IFREG, 0); err != nil {
			return &os.PathError{Op: "mknod", Path: to, Err: err}
		}
		if err := bind(d.Path, to); err != nil {
			return err
		}
	}
	links := [][2]string{{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"/proc/kcore", "core"}}
	for _, link := range links {
		if _, err := os.Lstat(link[0]); link[1] == "core" && err != nil {
			continue
		}
		if err := os.Symlink(link[0], assemblyRoot+"/dev/"+link[1]); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: to, Err: err}
	}
	return nil
}

// remount changes the flags of one mount.
func remount(dir string, flags int) error {
	if err := unix.Mount("", dir, "", uintptr(flags|unix.MS_REMOUNT|unix.MS_BIND), ""); err != nil {
		return &os.PathError{Op: "remount", Path: dir, Err: err}
	}
	return nil
}

// readOnlyPath covers a path with itself, read-only. One that this kernel does not have is no
// error.
func readOnlyPath(p string) error {
	err := unix.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, "")
	if err == unix.ENOENT {
		return nil
	}
	var st unix.Statfs_t
	if err == nil {
		err = unix.Statfs(p, &st)
	}
	if err != nil {
		return &os.PathError{Op: "making read-only", Path: p, Err: err}
	}
	return remount(p, int(st.Flags)&(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)|unix.MS_RDONLY)
}

// maskedDirs are the paths that were directories when they were masked last. To try the wrong
// one first costs a grace period of the kernel.
var maskedDirs sync.Map

// maskPaths covers files with /dev/null, and directories with one empty file system. Paths that
// this kernel does not have are passed over.
func (a assembly) maskPaths(paths []string) error {
	file := func(to string) error { return unix.Mount("/dev/null", to, "", unix.MS_BIND, "") }
	empty := ""
	dir := func(to string) error {
		if empty != "" {
			return unix.Mount(empty, to, "", unix.MS_BIND, "")
		}
		err := unix.Mount("tmpfs", to, "tmpfs", unix.MS_RDONLY, fmt.Sprintf("nr_blocks=1,nr_inodes=1,uid=%d,gid=%d", a.id, a.id))
		if err == nil {
			empty = to
		}
		return err
	}
	for _, p := range paths {
		first, second := file, dir
		if _, known := maskedDirs.Load(p); known {
			first, second = dir, file
		}
		err := first(assemblyRoot + p)
		if errors.Is(err, unix.ENOTDIR) {
			if err = second(assemblyRoot + p); err == nil {
				maskedDirs.Store(p, true)
			}
		}
		// ENOTDIR of both: something above it is a file.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return &os.PathError{Op: "masking", Path: p, Err: err}
		}
	}
	return nil
}

// pivot makes dir the root of all processes in the mount namespace, and takes away what was
// there before.
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	// The old root lies on the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	return unix.Chdir("/")
}

// The config of a guest that a zygote can make.
func checkForkable(config *configs.Config) error {
	for _, m := range config.Mounts {
		if m.Device != "proc" && m.Device != "tmpfs" {
			return fmt.Errorf("a zygote makes no guest with a mount of type %s on %s", m.Device, m.Destination)
		}
		if strings.Contains(m.Destination, "..") {
			return fmt.Errorf("mount on %s: not a clean path", m.Destination)
		}
	}
	return nil
}
