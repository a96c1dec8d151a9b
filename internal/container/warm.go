package container

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
)

// Warm shortens the next Create of a process that has just started. Moving a
// process into a cgroup first waits until every cpu has noticed that one is about
// to be moved (an RCU grace period, some 15 ms), unless another was moved a moment
// ago. Warm moves this process to where it already is, so that the wait goes on
// while a command reads its bundle. It changes nothing and reports nothing: a
// kernel where it cannot be done makes Create slower, not wrong.
//
// Call it on a goroutine of its own, and not in a process that creates many.
func Warm() {
	groups, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	own, ok := groups[""]
	if !ok || strings.Contains(own, "..") { // outside the visible hierarchy
		return
	}
	mount := "/sys/fs/cgroup"
	if cgroups.IsCgroup2HybridMode() {
		mount = "/sys/fs/cgroup/unified"
	}
	f, err := os.OpenFile(filepath.Join(mount, own, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString("0")
}

// HasCgroup2 reports whether containers have a cgroup2 directory here.
func HasCgroup2() bool { return cgroups.IsCgroup2UnifiedMode() || cgroups.IsCgroup2HybridMode() }
