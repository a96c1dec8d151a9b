package container

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Unheld refuses to cover directories of a frozen container's root if one of its processes
// could open from elsewhere what is in them: it has one of them, or one below, open or is in
// it, or descriptors are under way in a socket, of which nobody can tell what they are. Files
// that are open or mapped are not in the way, nor is what is under way in sockets to which only
// the host sends, which /proc calls ours. The error wraps [ErrBusy].
func (c *Container) Unheld(dirs []string, ours ...string) error {
	group, err := c.UnifiedCgroup()
	if err != nil {
		return err
	}
	pids, err := groupPIDs(group)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		err := eachDescriptor(pid, func(d descriptor) error { return d.unheld(pid, dirs, ours) })
		if gone(err) != nil {
			return err
		}
	}
	return nil
}

func (d descriptor) unheld(pid int, dirs, ours []string) error {
	if strings.HasPrefix(d.target, "socket:") && !slices.Contains(ours, d.target) {
		waiting, err := d.info("scm_fds")
		if err == nil && waiting != "" && waiting != "0" {
			err = fmt.Errorf("%w: process %d has a socket in which %s descriptors are under way", ErrBusy, pid, waiting)
		}
		return err
	}
	for _, dir := range dirs {
		if d.target != dir && !strings.HasPrefix(d.target, dir+"/") {
			continue
		}
		// Whoever serves the file system need not be asked what it is.
		var stat unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, d.link, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &stat); err != nil {
			return err
		}
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("%w: process %d has the directory %q, of which files are hidden", ErrBusy, pid, d.target)
		}
	}
	return nil
}
