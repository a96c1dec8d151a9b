package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// quiet is QUIET of sched.bpf.c: what is closer together is one stretch.
const quiet = uint64(800 * time.Millisecond)

// settle is how long the program is not loaded after the first guest came: to load it takes
// 40 ms of a processor, as long as to start a guest, and a short script has ended by then. It
// is one period of the limit: the kernel counts at its end. Nothing is lost but promptness.
const settle = 100 * time.Millisecond

// Throttles tells when the guests of a process are held back by their cpu limits, as
// sched.bpf.c finds out. Its program is one for the host, whoever has guests: the first
// process has it run, the others find it by its name among what runs, and it stops with the
// last of them. See throttle_program.go.
type Throttles struct {
	version string // of the program: see throttleVersion
	ended   chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	guests  map[uint64]*throttled
	begun   bool
	program *throttleProgram // nil until it is loaded
	err     error            // why it is not
}

// throttled is one guest.
type throttled struct {
	dir     string
	periods uint64 // that are known, and nobody's news
	told    func(time.Time, uint64)
	heard   uint64 // stretches that the program has told of
}

// NewThrottles returns one for the guests of this process. It costs nothing before the
// first.
func NewThrottles() *Throttles {
	return &Throttles{version: throttleVersion(), ended: make(chan struct{}), guests: make(map[uint64]*throttled)}
}

// Watch has told called from now on when a guest begins to be held back: once for each
// stretch of time in which that happens again and again, with the number of periods so
// far. It must not block: one goroutine serves all guests. dir is the guest's directory of
// the cpu controller; what was counted before, periods, is nobody's event. [Throttles.Forget]
// takes the number of the guest.
func (t *Throttles) Watch(dir string, periods uint64, told func(time.Time, uint64)) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("looking at the guest's cpu cgroup %s: %w", dir, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	g := &throttled{dir: dir, periods: periods, told: told}
	t.guests[st.Ino] = g
	if !t.begun {
		t.begun = true
		t.running.Go(t.run)
	}
	if t.program == nil {
		return st.Ino, nil
	}
	return st.Ino, t.add(st.Ino, g)
}

// Forget has the guest told what it has not been told yet, and nothing more once it has
// returned. The cgroup must still be there.
func (t *Throttles) Forget(guest uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, there := t.guests[guest]
	if !there {
		return
	}
	delete(t.guests, guest)
	if t.program == nil {
		if t.err == nil {
			g.catchUp()
		}
		return
	}
	var seen bpf.SchedGuest
	if t.program.maps.Guests.LookupAndDelete(guest, &seen) != nil {
		return // it could not be added, which has been said
	}
	for range seen.Told - g.heard { // their records are in the ring, or there was no room for them
		g.told(wallTime(seen.Began), seen.Periods)
	}
	if g.periods = seen.Periods; seen.Last == 0 || monotonic()-seen.Last > quiet {
		g.catchUp() // held back on its way to sleep, and nobody has looked since
	}
}

// catchUp tells of what the kernel has counted beyond what is known, and reports whether
// there was anything.
func (g *throttled) catchUp() bool {
	counted, err := countedPeriods(g.dir)
	if err != nil || counted <= g.periods {
		return false // err: the cgroup has gone
	}
	g.periods = counted
	g.told(time.Now(), counted)
	return true
}

// countedPeriods is the number of periods in which the kernel has seen the group held back.
func countedPeriods(dir string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "nr_throttled "); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, nil // a group without a limit, on v2
}

// monotonic is the clock of the program.
func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return uint64(now.Nano())
}

// Err says why nothing is told on this host, if that is so.
func (t *Throttles) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Close ends the watching. Guests that are left are told nothing more.
func (t *Throttles) Close() error {
	close(t.ended)
	t.mu.Lock()
	p := t.program
	for guest := range t.guests {
		if p != nil {
			_ = p.maps.Guests.Delete(guest)
		}
	}
	t.mu.Unlock()
	if p != nil {
		_ = p.reader.Close()
	}
	t.running.Wait()
	return nil
}

// run loads the program, and then reads what it says.
func (t *Throttles) run() {
	select {
	case <-t.ended:
		return
	case <-time.After(settle):
	}
	p, err := openThrottleProgram(t.version)
	t.mu.Lock()
	select {
	case <-t.ended:
		t.mu.Unlock()
		p.close()
		return
	default:
	}
	if err != nil {
		t.err = fmt.Errorf("it takes Linux 6.1, CONFIG_BPF_EVENTS, CONFIG_DEBUG_INFO_BTF and leave to trace: %w", err)
		t.mu.Unlock()
		p.close()
		return
	}
	t.program = p
	for guest, g := range t.guests {
		t.err = errors.Join(t.err, t.add(guest, g))
	}
	t.mu.Unlock()
	defer p.close()
	t.read(p.reader)
}

// add has the program look at a guest, which is told first what was counted before there
// was anybody to look: it may be asleep by now. The caller holds the lock.
func (t *Throttles) add(guest uint64, g *throttled) error {
	guests, entry := t.program.maps.Guests, bpf.SchedGuest{Owner: t.program.owner}
	if g.catchUp() {
		entry.Last = monotonic() // what follows at once is of the same stretch
	}
	entry.Periods = g.periods
	err := guests.Put(guest, entry)
	if errors.Is(err, unix.E2BIG) {
		if err = t.program.forgetGone(g.dir); err == nil {
			err = guests.Put(guest, entry)
		}
	}
	if err != nil {
		return fmt.Errorf("watching the throttling of cgroup %s: %w", g.dir, full(err, guests, "guests"))
	}
	return nil
}

// read runs until the reader is closed.
func (t *Throttles) read(reader *ringbuf.Reader) {
	var record ringbuf.Record
	for reader.ReadInto(&record) == nil {
		var e bpf.SchedThrottle
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &e); err != nil {
			continue
		}
		t.mu.Lock()
		if g, there := t.guests[e.Cgroup]; there {
			g.heard++
			g.told(wallTime(e.Time), e.Periods)
		}
		t.mu.Unlock()
	}
}
