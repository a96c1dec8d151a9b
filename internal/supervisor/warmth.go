package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Entering a cgroup takes a lock that every fork and exit in the machine holds for
// reading. The first writer after a pause waits for an RCU grace period: 5 to 20 ms,
// the longest single wait of a spawn. A writer that comes within a grace period of the
// last one finds the lock still in the writers' state and waits for nothing (seen here:
// 0.1 ms up to 20 ms after the last, 5 to 12 ms after 50 ms). So the supervisor enters
// the group it is in, which changes nothing, when a client says hello and when a spawn
// begins, and goes on doing it for a little while, because where one guest is made
// another often follows. It costs 0.1 ms of cpu each time; what it does to forks and
// exits meanwhile is what the mount option favordynmods does to them all the time.

const (
	warmFor   = time.Second           // after the last hello or spawn
	warmEvery = 10 * time.Millisecond // less than a grace period
)

// cgroupWarmth keeps the lock in the writers' state for a while.
type cgroupWarmth struct {
	mu      sync.Mutex // guards the fields below
	until   time.Time
	running bool
}

// extend begins to keep the lock warm, or goes on.
func (w *cgroupWarmth) extend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.until = time.Now().Add(warmFor)
	if !w.running {
		w.running = true
		go w.run()
	}
}

func (w *cgroupWarmth) run() {
	var own ownCgroup
	defer own.close()
	for w.goesOn() {
		own.enter()
		time.Sleep(warmEvery)
	}
}

func (w *cgroupWarmth) goesOn() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = time.Now().Before(w.until)
	return w.running
}

// ownCgroup is the group that this process is in, in any hierarchy.
type ownCgroup struct {
	all   string   // the process's groups, as it found them
	procs *os.File // the one's list of processes
}

// enter makes this process enter the group that it is in. Where that is is looked at each
// time: somebody may have moved the process. Errors mean nothing: the lock is taken before
// anything else can fail.
func (o *ownCgroup) enter() {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	if string(data) != o.all {
		o.close()
		o.all = string(data)
		if file := cgroupFile(o.all); file != "" {
			o.procs, _ = os.OpenFile(file, os.O_WRONLY, 0)
		}
	}
	if o.procs != nil {
		_, _ = o.procs.WriteString("0")
	}
}

func (o *ownCgroup) close() {
	closeFile(o.procs)
	o.procs = nil
}

// cgroupFile finds the file that lists the processes of one of the groups in a /proc/PID/cgroup.
func cgroupFile(all string) string {
	for line := range strings.Lines(all) {
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
