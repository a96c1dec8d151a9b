package container

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const (
	// groupParent is the group below which containers without a path of their own
	// live. It is removed with the last of them.
	groupParent = "psi"
	// killPatience is how long killed processes get to leave their cgroup.
	killPatience = 10 * time.Second
)

// commonGroups are the cgroups that psi makes for many containers, and removes with
// the last of them: those that are shared, and the parents. What is below comes first.
func (e *entry) commonGroups() []string {
	common := slices.Clone(e.Shared)
	for _, leaf := range slices.Concat(e.Shared, slices.Collect(maps.Values(e.Cgroups))) {
		if parent := filepath.Dir(leaf); filepath.Base(parent) == groupParent {
			common = append(common, parent)
		}
	}
	return common
}

// makeGroup makes a v1 group, or one of cgroup2 without controllers.
func makeGroup(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.ENOENT) {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// killGroups ends every process in the groups and returns when none is left.
// With cgroup2 (also on hybrid hosts, where its groups have no controllers) the
// kernel does it at once, forks included. Processes that are in other
// hierarchies only are killed one by one, by pidfd.
func killGroups(paths map[string]string) error {
	deadline := time.Now().Add(killPatience)
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if dir, ok := paths[""]; ok {
			err := writeGroup(dir, "cgroup.kill", "1")
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("killing cgroup: %w", err)
			}
		}
		alive := 0
		for _, dir := range paths {
			n, err := killMembers(dir)
			if err != nil {
				return err
			}
			alive += n
		}
		if alive == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("killing cgroups: %d processes are left after %v", alive, killPatience)
		}
		time.Sleep(pause)
	}
}

// killMembers sends SIGKILL to the members of one group and those below it, and
// returns how many there were. A frozen v1 group is thawed, or nothing would die.
func killMembers(dir string) (int, error) {
	pids, err := groupPIDs(dir)
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	return len(pids), signalMembers(dir, pids, unix.SIGKILL)
}

// signalMembers sends sig to those of pids that are (still) members of dir. A
// pid is pinned by a pidfd before its membership is read again.
func signalMembers(dir string, pids []int, sig unix.Signal) error {
	fds := make(map[int]*os.File, len(pids))
	defer func() {
		for _, f := range fds {
			f.Close()
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH || err == unix.EINVAL {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pidfd_open", err)
		}
		fds[pid] = os.NewFile(uintptr(fd), "pidfd")
	}
	again, err := groupPIDs(dir)
	if err != nil {
		return err
	}
	for _, pid := range again {
		if f, ok := fds[pid]; ok {
			if err := signalFD(f, sig); err != nil && !errors.Is(err, ErrNotRunning) {
				return err
			}
		}
	}
	thaw(dir)
	return nil
}

// thaw ends a pause, of either version of cgroups.
func thaw(dir string) {
	_ = writeGroup(dir, "freezer.state", "THAWED")
	_ = writeGroup(dir, "cgroup.freeze", "0")
}

// groupMembers is the kernel's list of the processes in a group, nil for one that does not exist.
func groupMembers(dir string) ([]byte, error) {
	data, err := readGroup(dir, "cgroup.procs")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if errors.Is(err, unix.ENOTSUP) { // a threaded group
		data, err = readGroup(dir, "cgroup.threads")
	}
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	return append([]byte{}, data...), nil
}

// occupied reports whether a process is in a group or below it, in whatever pid namespace.
func occupied(dir string) (bool, error) {
	data, err := groupMembers(dir)
	if data == nil || len(data) > 0 {
		return len(data) > 0, err
	}
	below, err := subdirs(dir)
	for _, sub := range below {
		if is, subErr := occupied(sub); is || subErr != nil {
			return is, subErr
		}
	}
	return false, err
}

// groupPIDs lists the processes in a group and below it, as pids of our own pid
// namespace; a group that does not exist has none.
func groupPIDs(dir string) ([]int, error) {
	var pids []int
	data, err := groupMembers(dir)
	if data == nil {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		pid, err := strconv.Atoi(strings.TrimSpace(string(line)))
		if err != nil {
			return nil, fmt.Errorf("listing processes of %s: %w", dir, err)
		}
		if pid > 0 { // 0: a process that is not visible in our pid namespace
			pids = append(pids, pid)
		}
	}
	below, err := subdirs(dir)
	if err != nil {
		return nil, err
	}
	for _, sub := range below {
		more, err := groupPIDs(sub)
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// subdirs lists the groups directly below a group. The link count tells in one
// call that there are none, which is the usual case.
func subdirs(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Nlink <= 2 {
		return nil, nil //nolint:nilerr // it went
	}
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, item := range list {
		if item.IsDir() {
			out = append(out, filepath.Join(dir, item.Name()))
		}
	}
	return out, nil
}

// removeGroups removes the groups and those below them. A process that has been
// killed may keep its group busy for a moment.
func removeGroups(paths map[string]string) error {
	for _, dir := range paths {
		if err := cgroups.RemovePath(dir); err != nil {
			return fmt.Errorf("removing cgroup: %w", err)
		}
	}
	return nil
}

// groupValue reads the number that follows key in a flat keyed file of a group.
func groupValue(dir, file, key string) (uint64, error) {
	data, err := readGroup(dir, file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(data) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && name == key {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("reading %s: no %q", filepath.Join(dir, file), key)
}

// groupNumber reads a file of a group that holds one number.
func groupNumber(dir, file string) (uint64, error) {
	data, err := readGroup(dir, file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// readGroup reads a file of a group, or of /proc. An os.File would first be made, unsuccessfully, one to
// wait for: that takes as long as the rest.
func readGroup(dir, file string) ([]byte, error) {
	path := filepath.Join(dir, file)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 512)
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) == cap(data) {
			data = slices.Grow(data, len(data))
		}
	}
}

// writeGroup writes a file of a group, or of /proc, that is there.
func writeGroup(dir, file, value string) error {
	path := filepath.Join(dir, file)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &os.PathError{Op: "write", Path: path, Err: err}
		}
	}
}
