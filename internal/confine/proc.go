package confine

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckProc reports why the process pid, which waits to be started in its container,
// could not be trusted to execute psi-init: its /proc/self/fd must be the kernel's, not
// something that an image or a bundle put there. Call it before the container is started.
func CheckProc(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	root, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the container's root: %w", err)
	}
	defer unix.Close(root)
	const wayOut = "psi-init is started through /proc/self/fd: mount proc at /proc (mounts: {destination: /proc, type: proc})"
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	proc, err := openat2(root, "proc", &how)
	if err != nil {
		return fmt.Errorf("opening the container's /proc: %w: %s", err, wayOut)
	}
	defer unix.Close(proc)
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(proc, &fs), unix.Fstat(proc, &st)); err != nil {
		return fmt.Errorf("looking at the container's /proc: %w", err)
	}
	const rootOfProc = 1 // inode number
	if fs.Type != unix.PROC_SUPER_MAGIC || st.Ino != rootOfProc {
		return errors.New("the container's /proc is no procfs: " + wayOut)
	}
	return checkMounts(filepath.Join(dir, "mountinfo"))
}

// checkMounts refuses mounts over the processes' own directories in /proc.
func checkMounts(mountinfo string) error {
	f, err := os.Open(mountinfo)
	if err != nil {
		return fmt.Errorf("reading the container's mounts: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		below, ok := strings.CutPrefix(fields[4], "/proc/")
		first, _, _ := strings.Cut(below, "/")
		if ok && (first == "self" || first == "thread-self" || strings.Trim(first, "0123456789") == "") {
			return fmt.Errorf("something is mounted at %s in the container, where psi-init is started from: remove that mount", fields[4])
		}
	}
	return lines.Err()
}

func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
