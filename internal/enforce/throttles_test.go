package enforce_test

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
)

// cpuGroup makes a group of the cpu controller that may compute 10 ms in each 100 ms, and
// moves the child there.
func cpuGroup(t *testing.T, c *child) string {
	t.Helper()
	root, file, value := "/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "10000"
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		root, file, value = "/sys/fs/cgroup", "cpu.max", "10000 100000"
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+cpu"), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(root, "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCPUGroup(t, c, dir) })
	for name, text := range map[string]string{file: value, "cgroup.procs": itoa(c.cmd.Process.Pid)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func removeCPUGroup(t *testing.T, c *child, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); err != nil {
		return // by the test itself
	}
	if err := os.WriteFile(filepath.Dir(dir)+"/cgroup.procs", []byte(itoa(c.cmd.Process.Pid)), 0); err != nil {
		t.Error(err)
	}
	removeCgroup(t, dir)
}

// heard collects what was told of a guest, and what the kernel had counted by then.
type heard struct {
	stat string // the group's cpu.stat

	mu    sync.Mutex
	all   []time.Time
	early bool // one was told before the end of its period
}

func (h *heard) add(began time.Time, periods uint64) {
	counted := h.counted()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, began)
	h.early = h.early || counted < periods
}

// counted is the number of periods in which the kernel says that the group was held back.
func (h *heard) counted() uint64 {
	data, _ := os.ReadFile(h.stat)
	_, after, _ := strings.Cut(string(data), "nr_throttled ")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return n
}

// compute keeps the child busy until it has been held back, which on a machine that has no
// time for it takes a while.
func (h *heard) compute(c *child) {
	for before := h.counted(); h.counted() == before; {
		c.do(request{Op: "compute", For: 300 * time.Millisecond})
	}
}

func (h *heard) list() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]time.Time(nil), h.all...)
}

func newThrottles(t *testing.T) *enforce.Throttles {
	all := enforce.NewThrottles()
	t.Cleanup(func() {
		if err := all.Close(); err != nil {
			t.Error(err)
		}
	})
	return all
}

func running(t *testing.T, all *enforce.Throttles) ebpf.ProgramID {
	t.Helper()
	await(t, "the program is there", func() bool {
		if err := all.Err(); err != nil {
			t.Fatal(err)
		}
		return all.ProgramID() != 0
	})
	return all.ProgramID()
}

// quiet is longer than a stretch of throttling can pause.
const quiet = time.Second

// A guest that computes on and on where it has 10 ms in 100 is held back. Each such stretch
// is told once, and not when the period ends, which is when the kernel counts it. One of
// five is enough for that: on a busy machine the reader can be late.
func TestThrottling(t *testing.T) {
	c := startChild(t, newCgroup(t))
	dir := cpuGroup(t, c)
	all := newThrottles(t)
	h := heard{stat: dir + "/cpu.stat"}
	if _, err := all.Watch(dir, 0, h.add); err != nil {
		t.Fatal(err)
	}
	running(t, all)
	for stretch := 1; stretch <= 5; stretch++ {
		time.Sleep(quiet)
		before := len(h.list()) // the child's start is one
		began := time.Now()
		h.compute(c)
		await(t, "it is told", func() bool { return len(h.list()) > before })
		time.Sleep(quiet / 2)
		times := h.list()[before:]
		if len(times) != 1 {
			t.Fatalf("stretch %d was told %d times: %v", stretch, len(times), times)
		}
		t.Logf("told %v after the guest was asked to compute", times[0].Sub(began))
	}
	if h.mu.Lock(); !h.early {
		t.Error("each was told when the kernel had counted it")
	}
	h.mu.Unlock()
}

// stop has the child not run until the returned function is called: it cannot even go to
// sleep, which the program would see.
func stop(t *testing.T, c *child) (resume func()) {
	t.Helper()
	pid := c.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the child stands still", func() bool {
		data, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
		return err == nil && strings.Contains(string(data), ") T ")
	})
	time.Sleep(quiet / 4) // the period of what it has done has ended
	resume = sync.OnceFunc(func() { _ = unix.Kill(pid, unix.SIGCONT) })
	t.Cleanup(resume)
	return resume
}

// What the kernel counted before the program could look is told when it can, to a guest
// that has not run since; once. One that has been forgotten is nobody's.
func TestThrottlingBeforeTheProgram(t *testing.T) {
	c := startChild(t, newCgroup(t))
	dir := cpuGroup(t, c)
	h := heard{stat: dir + "/cpu.stat"}
	h.compute(c)
	resume := stop(t, c)
	all := newThrottles(t)
	guest, err := all.Watch(dir, 0, h.add)
	if err != nil {
		t.Fatal(err)
	}
	running(t, all)
	await(t, "it is told", func() bool { return len(h.list()) == 1 })
	resume()
	h.compute(c) // the same stretch
	if times := h.list(); len(times) != 1 {
		t.Errorf("what goes on was told again: %v", times)
	}
	time.Sleep(quiet)
	all.Forget(guest)
	h.compute(c)
	time.Sleep(quiet / 4)
	if times := h.list(); len(times) != 1 {
		t.Errorf("a guest that was forgotten was told of: %v", times)
	}
}

// What nobody has been told when a guest is forgotten is told then, once: what the kernel
// counted before there was a program, and what the program said and nobody has heard.
func TestThrottlingIsToldInTheEnd(t *testing.T) {
	c := startChild(t, newCgroup(t))
	dir := cpuGroup(t, c)
	early := heard{stat: dir + "/cpu.stat"}
	early.compute(c)
	resume := stop(t, c)
	all := newThrottles(t)
	guest, err := all.Watch(dir, 0, early.add)
	if err != nil {
		t.Fatal(err)
	}
	all.Forget(guest)
	all.Forget(guest)
	if times := early.list(); len(times) != 1 {
		t.Errorf("before there was a program: %v", times)
	}

	late := heard{stat: dir + "/cpu.stat"}
	if guest, err = all.Watch(dir, late.counted(), late.add); err != nil {
		t.Fatal(err)
	}
	running(t, all)
	if err := all.LoseRecords(); err != nil {
		t.Fatal(err)
	}
	resume()
	late.compute(c)
	before := time.Now()
	if times := late.list(); len(times) != 0 {
		t.Fatalf("nothing was lost: %v", times)
	}
	all.Forget(guest)
	all.Forget(guest)
	if times := late.list(); len(times) != 1 || times[0].After(before) {
		t.Errorf("after its record was lost: %v, and it is %v", times, before)
	}
	time.Sleep(quiet)
	if times := append(early.list(), late.list()...); len(times) != 2 {
		t.Errorf("told again: %v", times)
	}
}

// Processes share the program, and one that begins takes the ring of one that has ended. What a killed one
// had in its maps goes once its guests' cgroups have gone.
func TestThrottleProgramIsShared(t *testing.T) {
	const version = "0123456789abcdef" // of this test alone: psi may have guests here
	t.Cleanup(func() {
		if err := enforce.RemoveThrottlesOf(version); err != nil {
			t.Error(err)
		}
	})
	var all [3]*enforce.Throttles
	var children [3]*child
	var dirs [3]string
	var id ebpf.ProgramID
	for i := range all {
		all[i], children[i] = enforce.NewThrottlesOf(version), startChild(t, newCgroup(t))
		dirs[i] = cpuGroup(t, children[i])
		if _, err := all[i].Watch(dirs[i], 0, func(time.Time, uint64) {}); err != nil {
			t.Fatal(err)
		}
		now := running(t, all[i])
		if id != 0 && now != id {
			t.Errorf("process %d has program %d, the others have %d", i, now, id)
		}
		id = now
	}
	closing, staying, killed := all[0], all[1], all[2]
	count := func() (guests, rings int) {
		guests, rings, err := staying.ForgetGone(dirs[1])
		if err != nil {
			t.Fatal(err)
		}
		return guests, rings
	}
	guests, rings := count()
	if err := closing.Close(); err != nil {
		t.Fatal(err)
	}
	killed.Abandon()
	if g, r := count(); g != guests-1 || r != rings {
		t.Errorf("after a process has closed: %d guests and %d rings, before %d and %d", g, r, guests, rings)
	}
	removeCPUGroup(t, children[2], dirs[2])
	next := enforce.NewThrottlesOf(version)
	if _, err := next.Watch(dirs[0], 0, func(time.Time, uint64) {}); err != nil {
		t.Fatal(err)
	}
	running(t, next)
	if g, r := count(); g != guests-1 || r != rings {
		t.Errorf("after another was killed, and one has begun: %d guests and %d rings, before %d and %d", g, r, guests, rings)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := staying.Close(); err != nil {
		t.Fatal(err)
	}
	if attachedAnywhere(t, id) {
		t.Error("the program runs without a process")
	}
	again := enforce.NewThrottlesOf(version)
	if _, err := again.Watch(dirs[0], 0, func(time.Time, uint64) {}); err != nil {
		t.Fatal(err)
	}
	if now := running(t, again); now != id {
		t.Errorf("program %d was loaded again, as %d", id, now)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// attachedAnywhere reports whether a link runs the program.
func attachedAnywhere(t *testing.T, id ebpf.ProgramID) bool {
	t.Helper()
	links := link.Iterator{}
	defer links.Close()
	for links.Next() {
		if info, err := links.Link.Info(); err == nil && info.Program == id {
			return true
		}
	}
	if err := links.Err(); err != nil {
		t.Fatal(err)
	}
	return false
}
