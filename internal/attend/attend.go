// Package attend is the host-side half of one guest's policy: everything that has
// to be done from outside, for as long as the guest lives, because the kernel does
// not do it alone.
//
//	rule          who holds it                     what attend does
//	tcp           cgroup/connect* programs and     attaches, listens and splices
//	              an empty network namespace
//	fs            LSM programs, where the kernel   attaches
//	              takes them
//	mem           the memory cgroup                on the first OOM kill ends the whole
//	                                               guest, says MEM_KILL
//	cpu           the cpu cgroup                   says CPU_THROTTLE, which the scheduler's
//	                                               program finds out
//	cpu_ms        attend's clock on the cgroup's   kills the cgroup, says CPU_THROTTLE
//	              own figure
//	wall_ms       attend's timer                   kills the cgroup
//
// It is used by the supervisor and by `psi-runtime attend`. Call Start after the
// container was created and before its process is started, so that nothing of the
// guest ever runs unattended; call Close when the guest's first process has been
// reaped and before the container is deleted, and only then read Cause.
//
// It is not the place for decisions about what a guest may do (pkg/policy), nor for
// the lifecycle of the container itself (internal/container).
package attend

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/internal/netproxy"
	"github.com/psi-runtime/psi/pkg/policy"
)

// The types of event that attend itself finds out about.
const (
	MemKill     = "MEM_KILL"     // details: limit (bytes), oom_kills
	CPUThrottle = "CPU_THROTTLE" // details: reason "quota" or "cpu_ms", limit, observed
	Denied      = "DENIED"       // details: see denialDetails
)

// The causes of a guest's end that attend decides.
const (
	CauseOOM        = "oom"        // limit and observed in bytes
	CauseCPU        = "cpu"        // in milliseconds of cpu time
	CauseWall       = "wall"       // in milliseconds since Start
	CauseUnattended = "supervisor" // the clocks could not be read any more; no figures
)

// Event is something that happened to a guest, as its owner is told.
type Event struct {
	Time    time.Time
	Type    string
	Details map[string]any // JSON-shaped
}

// Container is what attend needs of a container. *container.Container is one.
type Container interface {
	// UnifiedCgroup is the guest's directory in the cgroup2 hierarchy.
	UnifiedCgroup() (string, error)
	// NetNS opens the guest's network namespace; the caller closes it.
	NetNS() (*os.File, error)
	// KillCgroup kills every process of the guest.
	KillCgroup() error
	// CPU is the cpu time the guest has consumed.
	CPU() (time.Duration, error)
	// Throttled counts the quota periods in which the guest was held back.
	Throttled() (uint64, error)
	// Forked: its first process is a copy of a zygote's.
	Forked() bool
	// CPUGroup is the guest's directory of the cpu controller; "" where there is none.
	CPUGroup() string
	// MountNamespace is the inode number of the guest's mount namespace.
	MountNamespace() (uint32, error)
	// OOMKills counts the guest's processes that the kernel killed for memory.
	OOMKills() (uint64, error)
	// OOMEvents delivers that count whenever it grew, until ctx ends.
	OOMEvents(ctx context.Context) (<-chan uint64, error)
}

// Options are the parts of attending that differ between owners.
type Options struct {
	// OnEvent is told every event, one at a time, before the guest is killed for it.
	// It must not block: it runs on the clock's goroutine, or on that of all guests'
	// denials or throttling. Nil drops events.
	OnEvent func(Event)
	// Programs are those that the process already has found or loaded; nil does it for
	// this guest alone.
	Programs *enforce.Programs
	// Filter: the container's network is its engine's. The policy's endpoints are held by
	// the programs alone, names among them not at all, and nothing is opened.
	Filter bool
	// Ahead: the guest is made for a policy with endpoints that is not known yet: its network
	// is prepared for them.
	Ahead bool
	// Pairs: the guest may make pairs of datagram sockets, and no other AF_UNIX socket, and
	// the programs have to see to it that the pairs lead nowhere.
	Pairs bool
	// Files are the host's LSM programs; nil where the guest's mounts hold its file
	// rules. OwnFiles gives the rules for the guest's own root, beside its policy's, and
	// Places where its policy's decide; nil is where they open something.
	Files    *enforce.FilePrograms
	OwnFiles func(policy.Policy) []policy.FSRule
	Places   func(policy.Policy) []string
	// Throttles are those of the process; nil makes some for this guest alone.
	Throttles *enforce.Throttles
	// Budget shares the process's descriptors among its guests; nil bounds nothing.
	Budget *Budget
	// Net is passed to the network proxy, but for what the policy says.
	Net netproxy.Options
}

// Attendant attends one guest. Its methods may be called from any goroutine.
type Attendant struct {
	c         Container
	opts      Options
	net       network
	files     files
	base      atomic.Int64 // cpu time, in ns, that counts for nobody: see Begin
	stop      context.CancelFunc
	done      chan struct{} // closed when the clock goroutine has ended
	clocks    clocks
	throttles throttles
	policy    atomic.Pointer[policy.Policy] // in force
	closing   sync.Once
	telling   sync.Mutex // one event at a time
	refusals  refusals
	closed    error // of the one Close

	mu       sync.Mutex // guards the fields below
	cause    string
	limit    float64
	observed float64
}

// Start puts the policy's network, memory and cpu rules into force around a
// container whose process has not been started yet. On error nothing is left
// behind and the container must not be started.
func Start(c Container, p policy.Policy, opts Options) (_ *Attendant, err error) {
	ctx, stop := context.WithCancel(context.Background())
	a := &Attendant{
		c: c, opts: opts, stop: stop, done: make(chan struct{}),
	}
	a.policy.Store(&p)
	undo := []func(){stop}
	defer func() {
		if err == nil {
			return
		}
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}()
	opts.Net.OnRefuse = a.tellRefused
	if a.net, err = openNetwork(c, p, opts); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = a.net.close() })
	if a.files, err = openFiles(c, p, opts); err != nil {
		return nil, err
	}
	undo = append(undo, func() { _ = a.files.close() })
	if err = a.watchDenials(); err != nil {
		return nil, err
	}
	if err = a.clocks.begin(ctx, c, p.Limits(), time.Now()); err != nil {
		return nil, err
	}
	if err = a.watchThrottling(); err != nil {
		return nil, err
	}
	go a.run(ctx)
	return a, nil
}

// Cause says why attend ended the guest: one of the Cause constants, with the limit
// that was passed and the figure seen, in the units given there. It is "" when the
// guest was not ended by attend. It is final once Close has returned.
func (a *Attendant) Cause() (cause string, limit, observed float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause, a.limit, a.observed
}

// Enforced tells which mechanism holds the network rules, and the file rules where
// the mounts do not, for people.
func (a *Attendant) Enforced() []Enforcement {
	p := *a.policy.Load()
	return slices.Concat(a.files.enforced(p), a.net.enforced(p), a.throttles.enforced())
}

// Untold is the part of Enforced that is found out only while the guest runs: events that
// this host's kernel does not tell of.
func (a *Attendant) Untold() []Enforcement { return a.throttles.enforced() }

// ErrClosed means that the guest is no longer attended.
var ErrClosed = errors.New("attending guest: already closed")

// Update puts another policy's endpoints and clocks into force. The memory, cpu and
// pids limits are the container's to update, before this call. Connections that are no
// longer allowed are cut. After an error the old endpoints are in force. Updates of one
// guest must not overlap.
func (a *Attendant) Update(p policy.Policy) error {
	if err := a.change(p); err != nil {
		return err
	}
	return a.clocks.set(p.Limits(), time.Time{})
}

// change puts another policy's files and endpoints into force.
func (a *Attendant) change(p policy.Policy) error {
	old := a.policy.Load()
	if !slices.Equal(old.FS(), p.FS()) {
		if err := a.files.update(p); err != nil {
			return err
		}
	}
	if err := a.net.update(*old, p); err != nil {
		return errors.Join(err, a.files.update(*old))
	}
	a.policy.Store(&p)
	return nil
}

// Rest notes what a guest has used that was made before its policy was known: it waits now.
func (a *Attendant) Rest() error {
	used, err := a.c.CPU()
	a.base.Store(int64(used))
	return err
}

// Begin is Update for such a guest, which has done nothing yet: what it has used so far is
// not its own, and its lifetime begins now.
func (a *Attendant) Begin(p policy.Policy) error {
	if a.Base() == 0 {
		if err := a.Rest(); p.Limits().CPUTime > 0 && (err != nil || a.Base() == 0) {
			return noFigure(err)
		}
	}
	if err := a.change(p); err != nil {
		return err
	}
	return a.clocks.set(p.Limits(), time.Now())
}

// Base is the cpu time that the guest had used before Begin.
func (a *Attendant) Base() time.Duration { return time.Duration(a.base.Load()) }

// Close takes a last look at the memory events (a guest whose first process was the
// victim is gone before anybody could be told), stops the clocks and closes the
// network. It is idempotent.
func (a *Attendant) Close() error {
	a.closing.Do(func() {
		a.stop()
		<-a.done
		a.lastLook()
		a.closed = errors.Join(a.closeThrottles(), a.net.close(), a.files.close())
	})
	return a.closed
}

// end records the first cause, tells the owner, then kills the guest.
func (a *Attendant) end(cause string, limit, observed float64, ev *Event) {
	if !a.record(cause, limit, observed) {
		return
	}
	if ev != nil {
		a.tell(*ev)
	}
	// A kill can fail only for lack of kernel memory or because the group is gone;
	// the first passes, and an ended guest stops this goroutine through Close.
	for range 100 {
		if err := a.c.KillCgroup(); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(minPoll)
	}
}

// record keeps the first cause only.
func (a *Attendant) record(cause string, limit, observed float64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause != "" {
		return false
	}
	a.cause, a.limit, a.observed = cause, limit, observed
	return true
}

func (a *Attendant) tell(ev Event) {
	if a.opts.OnEvent == nil {
		return
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	a.telling.Lock()
	defer a.telling.Unlock()
	a.opts.OnEvent(ev)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
