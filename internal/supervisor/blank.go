package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/channel"
	"github.com/psi-runtime/psi/pkg/policy"
)

// A guest is made in two steps, so that one can be ready before anybody asks for it:
//
//	blank       a whole container, nobody's, with no host file and no endpoint; its agent has
//	            started, with the configuration that most policies need, and waits on the channel
//	specialise  (spawn.go) limits, files, endpoints, names and imports of a client's policy
//
// Every guest is made this way, whether its blank was waiting in the pool or is made when it
// is wanted: so there is no difference that a guest could see.

// kind tells blanks apart by what cannot change once they have started.
type kind struct {
	root   bundle.RootfsInfo
	policy policy.Policy // see policy.BeforeStart
	digest string        // of policy
	// reaches: its guests' policies have endpoints that policy has not, for which their network
	// is prepared. One without that can become such a guest too, and takes longer.
	reaches bool
}

func (k kind) key() string {
	return k.root.Path + "\x00" + k.root.Digest + "\x00" + k.digest + "\x00" + strconv.FormatBool(k.reaches)
}

// blankPatience is how long a guest's agent may take to start.
const blankPatience = 60 * time.Second

// blankPlan is what all blanks of a kind are made of. Nobody changes it.
type blankPlan struct {
	spec   *specs.Spec
	filter []byte // of spec, compiled
	config string // what their agents can be told before anybody wants them
}

// planBlank compiles a kind, once.
func (s *Supervisor) planBlank(k kind) (blankPlan, error) {
	s.mu.Lock()
	plan, ok := s.plans[k.key()]
	s.mu.Unlock()
	if ok {
		return plan, nil
	}
	spec, err := bundle.Compile(k.policy, k.root, bundle.View{}, bundle.Entry{Waits: true})
	if err != nil {
		return plan, fmt.Errorf("compiling the policy: %w", err)
	}
	if s.files != nil || s.holdsPairs(k.policy) {
		spec.Linux.Seccomp = bundle.SeccompWithPairs(k.policy)
	}
	spec.Root.Path = k.root.Path // in place of the bundle's copy: it is only ever a lower layer
	filter, err := container.CompileFilter(spec)
	if err != nil {
		return plan, err
	}
	config, err := bundle.AgentConfig(k.policy)
	if err != nil {
		return plan, err
	}
	plan = blankPlan{spec, filter, string(config)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.plans) >= maxPlans {
		clear(s.plans)
	}
	s.plans[k.key()] = plan
	return plan, nil
}

// holdsPairs reports whether the programs at a guest's cgroup have to see to it that pairs of
// datagram sockets lead nowhere. Where there are LSM programs, these decide, each time that
// an end is given a name to send or connect to. Nobody else is asked when an end is given a
// name of its own, at which the host could send to it: so a guest that may bind has none.
func (s *Supervisor) holdsPairs(p policy.Policy) bool {
	return s.files == nil && s.programs != nil && s.programs.HoldsPairs() && container.HasCgroup2() && len(p.Expose()) == 0
}

// maxPlans bounds the plans that are kept.
const maxPlans = 64

// makeBlank makes a guest that waits to be specialised. On error nothing of it is left.
func (s *Supervisor) makeBlank(k kind) (_ *guest, err error) {
	id, err := newID("psi-")
	if err != nil {
		return nil, err
	}
	g := &guest{s: s, id: id, kind: k, policy: k.policy, started: time.Now(), ended: make(chan struct{}), told: bundle.CommonConfig}
	if err := s.begin(); err != nil {
		return nil, err
	}
	undo := undoStack{func() error { s.running.Done(); return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()

	// spec: a bundle that is never written
	plan, err := s.planBlank(k)
	if err != nil {
		return nil, err
	}

	// imports: what of the root the guest is not shown
	var done func()
	if g.layer, done, err = s.layers.use(s.place, k.policy, k.root); err != nil {
		return nil, err
	}
	defer done()

	// channel: one socket is both stdin and stdout
	outside, inside, err := socketPair()
	if err != nil {
		return nil, err
	}
	undo.add(outside.Close)
	defer inside.Close()
	g.channel = outside
	if g.socket, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", inside.Fd())); err != nil {
		return nil, fmt.Errorf("naming the guest's channel: %w", err)
	}

	// container and attendance: everything but life
	if err = s.create(g, plan, inside, &undo); err != nil {
		return nil, err
	}
	if err = g.container.Start(); err != nil {
		return nil, fmt.Errorf("starting the guest: %w", err)
	}
	go g.wait()
	return g, nil
}

// create makes the guest's container, whose process waits to be started, and puts
// its policy into force while that process is still preparing.
func (s *Supervisor) create(g *guest, plan blankPlan, stdio *os.File, undo *undoStack) (err error) {
	if g.stderr, err = bounded(); err != nil {
		return err
	}
	undo.add(g.stderr.Close)
	zygote, done := s.zygote(g)
	defer done()
	err = s.createWith(zygote, g, plan, stdio)
	if zygote != nil && !s.isClosing() {
		s.zygotes.tried(g.kind, zygote, err)
	}
	if err != nil && zygote != nil && !s.isClosing() {
		// Whatever it was: libcontainer is asked, and if it cannot either, its error is told.
		s.opts.Log.WithError(err).WithField("message", g.lastWords()).Warn("forking a guest")
		if err = unsay(g.stderr); err == nil {
			err = s.createWith(nil, g, plan, stdio)
		}
	}
	if err != nil {
		return fmt.Errorf("creating the guest: %w", err)
	}
	undo.add(func() error { return errors.Join(g.attendant.Close(), g.container.Delete(true)) })
	return nil
}

// createWith makes the container, by a zygote or by libcontainer. On error nothing of it is
// left.
func (s *Supervisor) createWith(zygote *container.Zygote, g *guest, plan blankPlan, stdio *os.File) error {
	g.attendant = nil
	_, err := container.Create(context.Background(), container.CreateOptions{
		Zygote: zygote, Filter: plan.filter,
		// Pids in the state are of this supervisor's pid namespace: the state is kept
		// where no program of the host looks for containers of its own.
		Root: s.owner.Dir(), ID: g.id, Bundle: g.kind.root.Path, Spec: plan.spec, Owner: s.owner,
		Stdin: stdio, Stdout: stdio, Stderr: g.stderr,
		RootFiles: attend.RootFiles(g.policy), Layer: g.layer.mount,
		OnInit: func(c *container.Container) (err error) {
			g.container = c
			g.attendant, err = attend.Start(c, g.policy, attend.Options{
				OnEvent: g.attended, Programs: s.programs, Files: s.files, OwnFiles: func(policy.Policy) []policy.FSRule { return bundle.OwnFiles() }, Budget: s.budget, Throttles: s.throttles,
				Pairs: s.holdsPairs(g.policy), Ahead: g.kind.reaches,
			})
			return err
		},
	})
	if err != nil && g.attendant != nil {
		err = errors.Join(err, g.attendant.Close())
	}
	return err
}

// tellBlank has the agent of a blank, which nobody waits for, take what it can know already.
func (s *Supervisor) tellBlank(g *guest) error {
	plan, err := s.planBlank(g.kind)
	if err != nil {
		return err
	}
	return g.configure(plan.config)
}

// await returns when the guest's agent has started, and takes what it says then: its client
// need not read it.
func (g *guest) await() error {
	fds := []unix.PollFd{{Fd: int32(g.channel.Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(blankPatience); ; {
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("the guest's interpreter has not started within %v", blankPatience)
		case fds[0].Revents&unix.POLLHUP != 0:
			return g.didNotStart()
		}
		return g.hear()
	}
}

// hear takes the first thing that the agent says, which is READY.
func (g *guest) hear() error {
	f, err := channel.NewReader(g.channel, channel.FromGuest, 0).Read()
	if err == nil && f.Type != channel.Ready {
		err = fmt.Errorf("its first frame is of type %d", f.Type)
	}
	if err == nil {
		_, err = channel.ParseReady(f.Payload)
	}
	if err != nil {
		return fmt.Errorf("hearing the guest's agent: %w", err)
	}
	g.ready = f.Payload
	return nil
}

// didNotStart explains the end of a guest that nobody had talked to.
func (g *guest) didNotStart() error {
	if !g.endsWithin(killPatience) {
		return errors.New("the guest has closed its channel before it was told anything")
	}
	message := g.lastWords()
	if message == "" {
		message = "it said nothing"
	}
	return fmt.Errorf("the guest's interpreter did not start: %s", message)
}

// discard ends a guest that its client does not get.
func (g *guest) discard() error {
	g.ask(control.CauseClosed, "")
	return errors.Join(g.kill(), g.channel.Close())
}

// newID is a name on the host.
func newID(prefix string) (string, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("choosing a name: %w", err)
	}
	return prefix + hex.EncodeToString(random[:]), nil
}

// socketPair makes the channel: the client's end and the guest's.
func socketPair() (outside, inside *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the guest's channel: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel of the guest"), nil
}

// undoStack is how to undo what a constructor has done, newest first.
type undoStack []func() error

func (u *undoStack) add(step func() error) { *u = append(*u, step) }

func (u *undoStack) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	return errors.Join(errs...)
}
