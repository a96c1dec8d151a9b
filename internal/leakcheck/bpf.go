package leakcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programs lists the eBPF programs that are attached to cgroups nobody removes:
// the root of cgroup2 and our own group. Programs on a guest's cgroup go with it,
// and those attached to nothing live by a descriptor or a pin; all of these are
// looked at elsewhere.
//
//nolint:unparam // one of several snapshots of the same form, see leakcheck.go
func programs(foreign) (map[string]string, error) {
	out := map[string]string{}
	for _, dir := range lastingGroups() {
		// Beyond the attach types of cgroups there is none that a cgroup accepts, and
		// asking for one is EINVAL.
		for kind := range uint32(64) {
			for _, id := range attached(dir, kind) {
				name := fmt.Sprintf("program %d, attach type %d, on %s", id, kind, dir)
				out[name] = name
			}
		}
	}
	return out, nil
}

// lastingGroups are the root of the cgroup2 hierarchy and the group we are in.
func lastingGroups() []string {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "unified", "cgroup.procs")); err == nil {
		root = filepath.Join(root, "unified")
	}
	groups := []string{root}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return groups
	}
	for line := range strings.Lines(string(data)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && own != "/" {
			groups = append(groups, filepath.Join(root, own))
		}
	}
	return groups
}

// attached asks the kernel which programs of one attach type are on a cgroup.
func attached(dir string, kind uint32) []uint32 {
	group, err := os.Open(dir)
	if err != nil {
		return nil // no cgroup2 here
	}
	defer group.Close()
	ids := make([]uint32, 64)
	const progQuery = 16 // BPF_PROG_QUERY
	// The part of union bpf_attr for this command.
	attr := struct {
		target, kind, queryFlags, attachFlags uint32
		ids                                   uint64
		count                                 uint32
		_                                     [64]byte
	}{target: uint32(group.Fd()), kind: kind, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, progQuery, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 { // a type that cgroups do not have, or this kernel does not
		return nil
	}
	return ids[:attr.count]
}

// keysOfPin lists the keys, eight bytes each, of a pinned map.
func keysOfPin(path string) []uint64 {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil
	}
	const objGet, mapGetNextKey = 7, 4
	get := struct {
		path unsafe.Pointer
		_, _ uint32
	}{path: unsafe.Pointer(name)}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, objGet, uintptr(unsafe.Pointer(&get)), unsafe.Sizeof(get))
	if errno != 0 {
		return nil
	}
	defer unix.Close(int(fd))
	var out []uint64
	var key, next uint64
	step := struct {
		fd        uint32
		_         uint32
		key, next unsafe.Pointer
	}{fd: uint32(fd), next: unsafe.Pointer(&next)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, mapGetNextKey, uintptr(unsafe.Pointer(&step)), unsafe.Sizeof(step))
		if errno != 0 || len(out) > 1<<13 {
			return out
		}
		out = append(out, next)
		key = next
		step.key = unsafe.Pointer(&key)
	}
}
