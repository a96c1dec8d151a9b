package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Reaping. The inner process is pid 1 of its namespace, so orphans become its
// children. Its own children (os/exec, libcontainer's init processes) have somebody
// who waits for exactly them, and whose status must not be taken away. There is no
// list of those pids that is right at every moment: libcontainer learns some of them
// only after they ended. But every owner sits in a blocking wait, or comes to it
// within a spawn, so an owned zombie is gone soon; an orphan's stays. The reaper
// therefore takes a zombie only when it has been one for orphanAge, and takes it by
// its pid, never "any child". A zombie keeps its pid, so the one that is taken is
// the one that was seen.

// orphanAge is far longer than a spawn may take between an init's end and its wait.
const orphanAge = 30 * time.Second

// process identifies one process of this pid namespace for good.
type process struct {
	pid   int
	start uint64 // clock ticks after boot
}

// reapOrphans runs until ctx ends. It sleeps until a child has ended, and then looks
// until no zombie is left.
func reapOrphans(ctx context.Context, log logrus.FieldLogger) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	ticker := time.NewTicker(orphanAge / 3)
	defer ticker.Stop()
	seen := make(map[process]time.Time)
	look := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
			look = true
		case now := <-ticker.C:
			if look {
				reap(seen, now, log)
				look = len(seen) > 0
			}
		}
	}
}

// reap takes the zombies that have been in seen for orphanAge, and brings seen up to
// date.
func reap(seen map[process]time.Time, now time.Time, log logrus.FieldLogger) {
	zombies, err := zombieChildren()
	if err != nil {
		log.WithError(err).Warn("looking for orphans")
		return
	}
	for p := range seen {
		if _, still := zombies[p]; !still {
			delete(seen, p)
		}
	}
	for p := range zombies {
		first, known := seen[p]
		if !known {
			seen[p] = now
			continue
		}
		if now.Sub(first) < orphanAge {
			continue
		}
		// ECHILD: its owner was quicker.
		if _, err := unix.Wait4(p.pid, nil, unix.WNOHANG, nil); err == nil {
			log.WithField("pid", p.pid).Debug("reaped an orphan")
		}
		delete(seen, p)
	}
}

// zombieChildren lists this process's children that have ended and were not waited for.
func zombieChildren() (map[process]struct{}, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("listing threads: %w", err)
	}
	zombies := make(map[process]struct{})
	for _, task := range tasks {
		data, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue // the thread has ended; its children are another one's now
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("reading children of thread %s: %w", task.Name(), err)
			}
			if state, start, err := processStat(pid); err == nil && state == 'Z' {
				zombies[process{pid, start}] = struct{}{}
			}
		}
	}
	return zombies, nil
}

// processStat reads a process's state and start time.
func processStat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is a name in parentheses that may hold anything.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("reading /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], start, err
}

func startTime(pid int) (uint64, error) {
	_, start, err := processStat(pid)
	return start, err
}
