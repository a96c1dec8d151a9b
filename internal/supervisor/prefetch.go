package supervisor

import (
	"os"
	"path/filepath"
	"strings"
)

// prefetchCgroupLock makes this process enter the cgroup that it is in.
//
// Entering a group takes a lock that every fork and exit in the machine holds for
// reading. The first writer after a pause waits for an RCU grace period, 5 to 12 ms
// here and the longest single wait of a spawn; writers that come soon after find the
// lock already in the writers' state. So a spawn begins with this, beside everything
// that has to happen before the guest's first process enters its own groups.
//
// Errors mean nothing: the lock is taken before anything else can fail.
func prefetchCgroupLock() {
	file := ownCgroup()
	if file == "" {
		return
	}
	if group, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
		_, _ = group.WriteString("0")
		_ = group.Close()
	}
}

// ownCgroup finds the file that lists the processes of this process's own group, in
// any hierarchy. It is looked up each time: somebody may have moved the process.
func ownCgroup() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, hierarchy := range []string{"", "unified", fields[1]} {
			file := filepath.Join("/sys/fs/cgroup", hierarchy, fields[2], "cgroup.procs")
			if _, err := os.Stat(file); err == nil {
				return file
			}
		}
	}
	return ""
}
