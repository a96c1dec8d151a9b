package leakcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const runDir = "/run/psi"

// kept is what stays in it when everybody has gone: seccomp filters for the next.
const kept = runDir + "/filters"

// runFiles lists what is below /run/psi. The directory itself may stay.
func runFiles(others foreign) (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(runDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || path == runDir {
			return nil
		}
		if err != nil {
			return err
		}
		if path == kept || others.owns(path) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		out[path] = path
		return nil
	})
	return out, err
}

// mounts lists the mounts of this process's namespace.
func mounts(others foreign) (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		// 36 35 98:0 /root /point options optional… - type source options
		fields := strings.Fields(line)
		if len(fields) < 5 || others.owns(fields[4]) || others.places.hold(fields[4]) || fields[4] == "/sys/fs/bpf" { // which stays, as where systemd mounts it
			continue
		}
		out[fields[0]+" "+fields[4]] = fields[4]
	}
	return out, nil
}

// cgroups lists those named psi…, of all hierarchies, and those below them. A
// group with somebody else's processes in it is theirs, and a group is listed only
// if none is below it.
func cgroups(others foreign) (map[string]string, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if !d.IsDir() || !strings.Contains(path, "/psi") || unix.Stat(path, &st) != nil || st.Nlink > 2 {
			return nil
		}
		if !others.inGroups(path) && !holdsForeign(path, all) {
			out[path] = path
		}
		return nil
	})
	return out, err
}

// holdsForeign reports whether a process that is not below us is in the group.
func holdsForeign(group string, all map[int]proc) bool {
	return slices.ContainsFunc(members(group), func(pid int) bool { return !isOurs(all, pid) })
}

// members are the processes of a group, without those below it.
func members(group string) (pids []int) {
	data, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// pins lists the guests that the host's LSM programs hold. The programs themselves,
// below /sys/fs/bpf/psi, stay until `psi-runtime gc` finds no guest. So does all that is
// there of the network programs: what a process has, who may be somebody else, goes with its guests'
// cgroups, or is the next one's (see internal/enforce).
func pins(others foreign) (map[string]string, error) {
	out := map[string]string{}
	maps, err := filepath.Glob("/sys/fs/bpf/psi/*/guests")
	if err != nil {
		return nil, err
	}
	for _, path := range maps {
		if strings.HasPrefix(path, "/sys/fs/bpf/psi/network") {
			continue
		}
		for _, cgroup := range keysOfPin(path) {
			if others.guests[cgroup] {
				continue
			}
			name := fmt.Sprintf("file rules of cgroup %d in %s", cgroup, path)
			out[name] = name
		}
	}
	return out, nil
}

// tempFiles lists temporary files of psi's that no process of somebody else's
// uses.
func tempFiles(foreign) (map[string]string, error) {
	out := map[string]string{}
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		found, err := filepath.Glob(filepath.Join(dir, "psi-*"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			out[path] = path
		}
	}
	if len(out) == 0 {
		return out, nil
	}
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	for pid := range all {
		if isOurs(all, pid) {
			continue
		}
		for path := range out {
			if uses(pid, path) {
				delete(out, path)
			}
		}
	}
	return out, nil
}

// uses reports whether a process has path, or something below it, on its command
// line, in its environment, open, or as its working directory.
func uses(pid int, path string) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	for _, file := range []string{"cmdline", "environ"} {
		if data, err := os.ReadFile(filepath.Join(proc, file)); err == nil && strings.Contains(string(data), path) {
			return true
		}
	}
	links, _ := filepath.Glob(proc + "/fd/*")
	for _, link := range append(links, proc+"/cwd") {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, path) {
			return true
		}
	}
	return false
}
