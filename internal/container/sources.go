package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// source is a host path that a bundle shows to its guest, pinned before the mount.
type source struct {
	mount  specs.Mount
	pinned *os.File
}

// pinSources opens what the idmapped mounts of a bundle show, and those at the
// destinations in more, following no symbolic link. A
// bundle is compiled at one time and run at another, and whoever may write beside a
// source, another guest perhaps, can put a link in its place in between.
func pinSources(mounts []specs.Mount, more []string) (_ []source, err error) {
	var pinned []source
	defer func() {
		if err != nil {
			closeSources(pinned)
		}
	}()
	for _, m := range mounts {
		if !slices.Contains(m.Options, "idmap") && !slices.Contains(m.Options, "ridmap") && !slices.Contains(more, m.Destination) {
			continue
		}
		f, err := openWithoutLinks(unix.AT_FDCWD, m.Source, unix.RESOLVE_NO_SYMLINKS)
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("mount source %s is, or lies behind, a symbolic link now: name what it leads to (compile the bundle again from a policy that does)", m.Source)
		}
		if err != nil {
			return nil, fmt.Errorf("opening mount source %s: %w", m.Source, err)
		}
		pinned = append(pinned, source{m, f})
	}
	return pinned, nil
}

// checkSources compares what is mounted in the guest, whose program does not run yet, with what
// was pinned: libcontainer mounts by path, which may have changed once more.
func checkSources(pid int, pinned []source) error {
	if len(pinned) == 0 {
		return nil
	}
	root, err := os.OpenFile(filepath.Join("/proc", strconv.Itoa(pid), "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the guest's root: %w", err)
	}
	defer root.Close()
	for _, s := range pinned {
		shown, err := openWithoutLinks(int(root.Fd()), s.mount.Destination, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return fmt.Errorf("opening mount point %s in the guest: %w", s.mount.Destination, err)
		}
		same, err := sameObject(s.pinned, shown)
		shown.Close()
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("mount source %s was exchanged while the container was created: it is not started", s.mount.Source)
		}
	}
	return nil
}

// openWithoutLinks opens a handle on name below dirfd.
func openWithoutLinks(dirfd int, name string, resolve uint64) (*os.File, error) {
	for {
		fd, err := unix.Openat2(dirfd, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

func sameObject(a, b *os.File) (bool, error) {
	one, err := a.Stat()
	if err != nil {
		return false, err
	}
	other, err := b.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(one, other), nil
}

func closeSources(pinned []source) {
	for _, s := range pinned {
		s.pinned.Close()
	}
}

// refuseForeignGroups refuses cgroups in which processes live already. libcontainer
// looks at one hierarchy only; undoing a failed start would kill what is in the others.
func refuseForeignGroups(paths map[string]string) error {
	for _, dir := range paths {
		pids, err := groupPIDs(dir)
		if err != nil {
			return err
		}
		if len(pids) > 0 {
			return fmt.Errorf("cgroup %s has %d processes already: a container's cgroup must be its own, see linux.cgroupsPath", dir, len(pids))
		}
	}
	return nil
}
