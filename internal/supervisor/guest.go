package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/policy"
)

const (
	// killPatience is how long a killed guest may take to be gone before the
	// supervisor tells its client that something is wrong with the machine.
	killPatience = 10 * time.Second
	// maxStderr is how much a guest may write to its stderr before the agent
	// takes over; it is the message of a guest that never became ready.
	maxStderr = 8 << 10
	// maxMessage bounds texts that go to clients.
	maxMessage = 4 << 10
)

// guest is one running container and what the supervisor knows about it.
type guest struct {
	s         *Supervisor
	id        string
	kind      kind // of blank
	attendant *attend.Attendant
	channel   *os.File      // the client's end, until the client has it
	socket    string        // what /proc calls the guest's end
	stderr    *os.File      // memfd that the guest's stderr goes to
	ended     chan struct{} // closed when no process of the guest runs

	client  *client // who took the blank; nil before. Set under Supervisor.mu
	running bool    // the client knows of it; guarded by Supervisor.mu

	ready json.RawMessage // what its agent has said, see await; nil: the client hears it. Set before it is anybody's
	told  string          // the configuration that its agent has, or will have read before any request

	importsLimit func(policy.Policy) (policy.Policy, error) // what spawn's allowed_imports leaves of a policy; nil: all
	layer        layer                                      // over the root; a reload changes it

	container *container.Container
	life      sync.RWMutex // held while container is used, exclusively while it is deleted

	mu        sync.Mutex // guards the fields below
	name      string     // which the client gave it; "" before
	started   time.Time
	policy    policy.Policy
	digest    string           // of policy, once the guest is a client's
	view      []string         // notes on how the files are shown
	shown     []view.Shown     // what is mounted in it; guarded by reloading
	covers    container.Covers // of its modules; guarded by reloading
	hosts     string           // what its /etc/hosts says; the same
	asked     string           // why the supervisor ended it: control.CauseClosed, control.CauseSupervisor or ""
	message   string           // goes with asked
	announced bool
	held      []any  // pushed messages of a guest that its client does not know yet
	untold    uint64 // denials whose events the client's queue had no room for
	retelling bool   // retell will run
	reloading sync.Mutex
}

// pushedEvent and pushedExit are the messages that nobody asked for.
type pushedEvent struct {
	Event   string         `json:"event"`
	Guest   string         `json:"guest"`
	Name    string         `json:"name"`
	TS      float64        `json:"ts"` // Unix time in seconds
	Details map[string]any `json:"details"`
}

type pushedExit struct {
	Exited control.Exit `json:"exited"`
}

// announcement is the reply to the spawn that made a guest.
type announcement struct {
	Guest    string               `json:"guest"`
	Digest   string               `json:"policy_digest"`
	Limits   control.Limits       `json:"limits"`
	Enforced []attend.Enforcement `json:"enforced"`
	Ready    json.RawMessage      `json:"ready,omitempty"` // the payload of READY, if the channel has it no more
}

func (g *guest) announcement() announcement {
	g.mu.Lock()
	defer g.mu.Unlock()
	return announcement{g.id, g.digest, control.LimitsOf(g.policy.Limits()), g.enforced(), g.ready}
}

// announce releases what was held back until the client knew the guest.
func (g *guest) announce() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.announced = true
	for _, m := range g.held {
		if ev, ok := m.(pushedEvent); ok {
			ev.Name = g.name // it may be older than that
			m = ev
		}
		g.s.push(g, m)
	}
	g.held = nil
}

// push tells the guest's watchers something, in order.
func (g *guest) push(m any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pushLocked(m)
}

func (g *guest) pushLocked(m any) {
	if !g.announced {
		g.held = append(g.held, m)
		return
	}
	g.s.push(g, m)
}

func (g *guest) event(ev attend.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pushLocked(g.eventMessage(ev))
}

// eventMessage is called with mu held.
func (g *guest) eventMessage(ev attend.Event) pushedEvent {
	return pushedEvent{
		Event: ev.Type, Guest: g.id, Name: g.name,
		TS: float64(ev.Time.UnixMicro()) / 1e6, Details: ev.Details,
	}
}

// attended takes the events of attendance.
func (g *guest) attended(ev attend.Event) {
	if ev.Type != attend.Denied {
		g.event(ev)
		return
	}
	g.denied(ev)
}

// maxHeldDenials bounds the denials of a guest that its client does not know yet.
const maxHeldDenials = 64

// denied tells the guest's watchers of a denial, if they have room for it. What guests
// try is theirs to choose, and a client's queue is all of its guests': a flood must not
// get the client dropped for not reading. The next one that is told says how many were not.
func (g *guest) denied(ev attend.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	suppressed, _ := ev.Details["suppressed"].(uint64)
	total := suppressed + g.untold
	ev.Details["suppressed"] = total
	switch m := g.eventMessage(ev); {
	case g.announced && g.s.offer(g, m):
		g.untold = 0
		return
	case !g.announced && len(g.held) < maxHeldDenials:
		g.held = append(g.held, m)
		g.untold = 0
		return
	}
	g.untold = total
	if ev.Details["kind"] != "suppressed" {
		g.untold++
	}
	if !g.retelling {
		g.retelling = true
		time.AfterFunc(retellEvery, g.retell)
	}
}

// retellEvery is how often a client that had no room for denials is offered their number.
const retellEvery = time.Second

// retell offers the number of untold denials until it is taken, or the guest has ended.
func (g *guest) retell() {
	g.mu.Lock()
	g.retelling = false
	untold, last := g.untold, g.hasEnded()
	g.untold = 0
	g.mu.Unlock()
	if untold == 0 {
		return
	}
	ev := attend.Event{Time: time.Now(), Type: attend.Denied, Details: map[string]any{"kind": "suppressed", "suppressed": untold}}
	if last {
		g.event(ev) // there is one, and then the end
		return
	}
	g.denied(ev)
}

// ask notes why the supervisor is about to end the guest; the first reason counts.
func (g *guest) ask(cause, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked == "" {
		g.asked, g.message = cause, clip(message, maxMessage)
	}
}

// close asks the guest to end, makes it end after the timeout, and returns when no
// process of it runs.
func (g *guest) close(timeout time.Duration) error {
	if g.hasEnded() {
		return nil
	}
	g.ask(control.CauseClosed, "")
	if g.terminate() == nil && g.endsWithin(timeout) {
		return nil
	}
	return g.kill()
}

// use holds the container against being deleted; the result lets it go.
func (g *guest) use() (done func()) {
	g.life.RLock()
	return g.life.RUnlock
}

// terminate asks the guest's first process to end. An error means that there is
// nobody to ask any more.
func (g *guest) terminate() error {
	defer g.use()()
	return g.container.Kill(unix.SIGTERM, false)
}

func (g *guest) killCgroup() error {
	defer g.use()()
	if g.hasEnded() {
		return nil
	}
	return g.container.KillCgroup()
}

// kill ends the guest at once. It returns when no process of it runs.
func (g *guest) kill() error {
	if g.hasEnded() {
		return nil
	}
	err := g.killCgroup()
	if g.endsWithin(killPatience) {
		return nil
	}
	return errors.Join(fmt.Errorf("killing guest %s: it has not ended after %v", g.id, killPatience), err)
}

func (g *guest) hasEnded() bool {
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

func (g *guest) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-g.ended:
		return true
	case <-timer.C:
		return g.hasEnded()
	}
}

// wait reaps the guest, tells why it ended and takes away what is left of it. It
// runs once, on a goroutine of its own, from the moment the blank is started.
func (g *guest) wait() {
	defer g.s.running.Done()
	status, err := g.container.Wait()
	if err != nil {
		// Without a status nothing is known about the guest's processes: end them.
		g.ask(control.CauseSupervisor, fmt.Sprintf("waiting for the guest: %v", err))
		err = errors.Join(err, g.container.KillCgroup())
		g.s.opts.Log.WithError(err).WithField("guest", g.id).Error("waiting for guest")
	}
	close(g.ended)
	if err := g.attendant.Close(); err != nil {
		g.s.opts.Log.WithError(err).WithField("guest", g.id).Warn("closing the guest's network")
	}
	g.retell()
	g.push(pushedExit{g.exit(status)})
	g.s.forget(g)
	g.s.remove(g)
}

// exit puts together what is known about the end. A limit that was passed explains
// everything that came after it; then who asked; then the process itself.
func (g *guest) exit(status container.ExitStatus) control.Exit {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := control.Exit{Guest: g.id, Name: g.name, Message: g.message}
	if status.Signal != 0 {
		signal := int(status.Signal)
		e.Signal = &signal
	} else {
		e.Code = &status.Code
	}
	switch cause, limit, observed := g.attendant.Cause(); {
	case cause == attend.CauseUnattended:
		e.Cause, e.Message = control.CauseSupervisor, "the guest's cpu time could not be read any more"
	case cause != "":
		e.Cause, e.Limit, e.Observed = cause, &limit, &observed
	case g.asked != "":
		e.Cause = g.asked
	case e.Signal != nil:
		e.Cause = control.CauseSignal
	default:
		e.Cause = control.CauseExit
	}
	if e.Message == "" && (e.Cause == control.CauseSignal || e.Cause == control.CauseExit && *e.Code != 0) {
		e.Message = g.lastWords()
	}
	return e
}

// lastWords is what the guest wrote to its stderr before the agent took over.
func (g *guest) lastWords() string { return wordsOn(g.stderr) }

func wordsOn(stderr *os.File) string {
	buf := make([]byte, maxStderr)
	n, _ := stderr.ReadAt(buf, 0)
	text := strings.ToValidUTF8(string(bytes.TrimRight(buf[:n], "\x00\n ")), "\uFFFD")
	return clip(text, maxMessage)
}

// unsay makes a guest's stderr as it was at first.
func unsay(stderr *os.File) error {
	_, err := stderr.WriteAt(make([]byte, maxStderr), 0)
	if err == nil {
		_, err = stderr.Seek(0, io.SeekStart)
	}
	return err
}

// clip shortens a text to at most n bytes without cutting a character.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n-len("…")], "") + "…"
}

// bounded is a file of maxStderr bytes that can be written to its end and no
// further: a guest's stderr that nobody has to read and that cannot grow.
func bounded() (*os.File, error) {
	fd, err := unix.MemfdCreate("psi-stderr", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making the guest's stderr: %w", err)
	}
	file := os.NewFile(uintptr(fd), "psi-stderr")
	err = file.Truncate(maxStderr)
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("making the guest's stderr: %w", err)
	}
	return file, nil
}
