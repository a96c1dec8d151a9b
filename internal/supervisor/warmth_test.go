package supervisor

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The group that is entered is the one this process is in, before and after.
func TestOwnCgroup(t *testing.T) {
	before, _ := os.ReadFile("/proc/self/cgroup")
	file := cgroupFile(string(before))
	data, err := os.ReadFile(file)
	if err != nil || !slices.Contains(strings.Fields(string(data)), strconv.Itoa(os.Getpid())) {
		t.Fatalf("%s does not list this process: %v", file, err)
	}
	var own ownCgroup
	defer own.close()
	own.enter()
	own.enter()
	if after, _ := os.ReadFile("/proc/self/cgroup"); string(after) != string(before) {
		t.Errorf("cgroups changed from\n%s to\n%s", before, after)
	}
}

func TestWarmthEnds(t *testing.T) {
	var w cgroupWarmth
	w.extend()
	w.extend()
	deadline := time.Now().Add(scaled(5 * warmFor))
	for w.isRunning() {
		if time.Now().After(deadline) {
			t.Fatal("the lock is kept warm for ever")
		}
		time.Sleep(warmEvery)
	}
	w.extend()
	if !w.isRunning() {
		t.Error("it does not begin again")
	}
}

func (w *cgroupWarmth) isRunning() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}
