package container

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

const mib = 1 << 20

// limited adds limits as pkg/bundle writes them: no swap, a cpu quota per 100 ms.
func limited(s *specs.Spec, mem int64, cpu float64, pids int64) *specs.Spec {
	quota, period := int64(cpu*cpuPeriod), uint64(cpuPeriod)
	s.Annotations[AnnotationPolicy] = "{}" // only its presence counts here
	s.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &mem, Swap: &mem},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	return s
}

func TestStats(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(limited(autoSpec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000 & echo up; wait"), 64*mib, 1, 20))
	line(t, r)
	s, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU < time.Millisecond || s.CPU > 10*time.Second {
		t.Errorf("cpu %v", s.CPU)
	}
	if s.Mem < 50<<10 || s.Mem > 64*mib {
		t.Errorf("memory %d", s.Mem)
	}
	if s.PIDs != 2 {
		t.Errorf("%d processes, want 2", s.PIDs)
	}
	if _, err := c.StatsEvent(); err != nil {
		t.Error(err)
	}
}

func TestOOM(t *testing.T) {
	f := newFixture(t)
	o := f.options(limited(autoSpec("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"), 32*mib, 1, 20))
	c := f.create(o)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := c.OOMEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.OOMKills(); err != nil || n != 0 {
		t.Errorf("%d kills before the start, %v", n, err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	n, ok := <-events
	if !ok || n == 0 {
		t.Errorf("event %d, open %v", n, ok)
	}
	if status, err := c.Wait(); err != nil || status.Signal != unix.SIGKILL {
		t.Errorf("status %+v, %v", status, err)
	}
	if n, err := c.OOMKills(); err != nil || n == 0 {
		t.Errorf("%d kills, %v", n, err)
	}
}

func TestOOMEventsEnd(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(limited(autoSpec("echo up; sleep 1000"), 32*mib, 1, 20))
	line(t, r)
	ctx, cancel := context.WithCancel(context.Background())
	events, err := c.OOMEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case n, ok := <-events:
		if ok {
			t.Errorf("event %d without a kill", n)
		}
	case <-time.After(5 * time.Second):
		t.Error("the channel stays open after its context has ended")
	}
}

func TestThrottled(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(limited(autoSpec("echo up; while :; do :; done"), 32*mib, 0.1, 20))
	line(t, r)
	eventually(t, "a busy guest with a tenth of a cpu is throttled", func() bool {
		n, err := c.Throttled()
		return err == nil && n > 0
	})
}

func TestUpdate(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(limited(autoSpec("echo up; sleep 1000"), 64*mib, 1, 20))
	line(t, r)
	if err := c.Update(policy.Limits{Mem: 48 * mib, CPU: 0.5, PIDs: 7}); err != nil {
		t.Fatal(err)
	}
	memory, cpu := "memory.limit_in_bytes", "cpu.cfs_quota_us"
	quota := "50000"
	if cgroups.IsCgroup2UnifiedMode() {
		memory, cpu, quota = "memory.max", "cpu.max", "50000 100000"
	}
	for _, want := range [][3]string{{"memory", memory, strconv.Itoa(48 * mib)}, {"cpu", cpu, quota}, {"pids", "pids.max", "7"}} {
		data, err := os.ReadFile(filepath.Join(c.controller(want[0]), want[1]))
		if got := strings.TrimSpace(string(data)); err != nil || got != want[2] {
			t.Errorf("%s is %q, %v; want %s", want[1], got, err, want[2])
		}
	}
	// What was left out stays, and the container can still be entered.
	if err := c.Update(policy.Limits{PIDs: 9}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(c.controller("memory"), memory))
	if got := strings.TrimSpace(string(data)); err != nil || got != strconv.Itoa(48*mib) {
		t.Errorf("memory is %q, %v", got, err)
	}
	if out, status := execOutput(t, c, ProcessOptions{Process: process("echo in")}); out != "in\n" || status.Code != 0 {
		t.Errorf("exec after update: %q, %+v", out, status)
	}
}

func TestCgroupPlaces(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(autoSpec("echo up; sleep 1000"))
	line(t, r)
	dir, err := c.UnifiedCgroup()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(filepath.Dir(dir)) != "psi" || !strings.HasPrefix(filepath.Base(dir), c.ID()) {
		t.Errorf("cgroup2 directory %s", dir)
	}
	state, err := c.lc.State()
	if err != nil {
		t.Fatal(err)
	}
	for controller, path := range state.CgroupPaths {
		if c.entry.Cgroups[controller] != path {
			t.Errorf("the journal has %q for %q, the state %q", c.entry.Cgroups[controller], controller, path)
		}
	}
	netns, err := c.NetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	var its, ours unix.Stat_t
	if err := unix.Fstat(int(netns.Fd()), &its); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat("/proc/self/ns/net", &ours); err != nil || its.Ino == ours.Ino {
		t.Errorf("the guest's network namespace is ours: %v", err)
	}
}
