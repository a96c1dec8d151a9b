package leakcheck

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// proc is one process of /proc.
type proc struct {
	pid, parent int
	state       string
	name        string
}

func allProcesses() (map[int]proc, error) {
	items, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]proc{}
	for _, item := range items {
		pid, err := strconv.Atoi(item.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile("/proc/" + item.Name() + "/stat")
		if err != nil {
			continue // it has gone
		}
		name, rest, ok := cutStat(string(data))
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		all[pid] = proc{pid: pid, parent: parent, state: fields[0], name: name}
	}
	return all, nil
}

// cutStat splits /proc/PID/stat around the command name, which may hold anything.
func cutStat(line string) (name, rest string, ok bool) {
	from, to := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if from < 0 || to < from {
		return "", "", false
	}
	return line[from+1 : to], line[to+1:], true
}

// isOurs reports whether pid is this process or one below it.
func isOurs(all map[int]proc, pid int) bool {
	for ; pid > 1; pid = all[pid].parent {
		if pid == os.Getpid() {
			return true
		}
	}
	return false
}

// processes lists those below this one.
func processes(foreign) (map[string]string, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for pid, p := range all {
		if pid != os.Getpid() && isOurs(all, pid) {
			out[strconv.Itoa(pid)] = fmt.Sprintf("%d (%s), state %s, parent %d", pid, p.name, p.state, p.parent)
		}
	}
	return out, nil
}

// reapOrphans waits for children that are zombies: what died below a process that
// did not wait for it has come to us as the subreaper.
func reapOrphans() {
	all, err := allProcesses()
	if err != nil {
		return
	}
	for pid, p := range all {
		if p.parent == os.Getpid() && p.state == "Z" {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// descriptors lists this process's open files, apart from Go's own and from those that
// are opened once and kept: a handle on /proc ("/" of a mount nobody sees), the root of
// the cgroups, and this process's own namespaces, for threads to come back to.
func descriptors(foreign) (map[string]string, error) {
	items, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	home := map[string]bool{}
	for _, kind := range []string{"mnt", "net"} {
		if own, err := os.Readlink("/proc/self/ns/" + kind); err == nil {
			home[own] = true
		}
	}
	out := map[string]string{}
	for _, item := range items {
		target, err := os.Readlink("/proc/self/fd/" + item.Name())
		if err != nil || strings.HasPrefix(target, "/proc/") || home[target] {
			continue
		}
		switch target {
		case "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/", "/sys/fs/cgroup":
			continue
		}
		out[item.Name()+" "+target] = item.Name() + " → " + target
	}
	return out, nil
}
