package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// spawn makes a guest and returns it with the client's end of its channel. On error
// nothing of the guest is left.
func (s *Supervisor) spawn(c *client, r control.Request) (_ *guest, outside *os.File, err error) {
	leave, err := s.enterSpawn(c)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	s.warmth.extend()
	var undo undoStack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()

	// policy: what the client asks for
	p, err := r.Resolve()
	if err != nil {
		return nil, nil, err
	}
	g, err := s.reserve(c, r.Name, p)
	if err != nil {
		return nil, nil, err
	}
	undo.add(func() error { s.forget(g); return nil })

	// view: the host's files, opened as the client
	view, err := pinView(p, c.peer, filepath.Join(s.place, g.id), s.plan)
	if err != nil {
		return nil, nil, err
	}
	defer s.releaseView(view)
	g.shown, g.importsLimit = view.shown, importsLimit(r)

	// spec: a bundle that is never written
	spec, err := s.compile(g, view.View, r.Rootfs)
	if err != nil {
		return nil, nil, err
	}

	// imports: what of the root the guest is not shown
	var done func()
	if g.layer, done, err = s.layers.use(s.place, p, g.root); err != nil {
		return nil, nil, err
	}
	defer done()

	// channel: one socket is both stdin and stdout
	outside, inside, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	undo.add(outside.Close)
	defer inside.Close()

	// container and attendance: everything but life
	if err = s.create(g, spec, inside, &undo); err != nil {
		return nil, nil, err
	}
	if err = g.container.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting the guest: %w", err)
	}
	return g, outside, s.adopt(g)
}

// compile makes the specification of the guest's container.
func (s *Supervisor) compile(g *guest, view bundle.View, rootfs string) (*specs.Spec, error) {
	root, err := s.rootfs(g.client.peer, rootfs)
	if err != nil {
		return nil, err
	}
	g.root, g.view = root, view.Notes
	spec, err := bundle.Compile(g.policy, root, view, bundle.Entry{})
	if err != nil {
		return nil, fmt.Errorf("compiling the policy: %w", err)
	}
	spec.Root.Path = root.Path // in place of the bundle's copy: it is only ever a lower layer
	return spec, nil
}

// create makes the guest's container, whose process waits to be started, and puts
// its policy into force while that process is still preparing.
func (s *Supervisor) create(g *guest, spec *specs.Spec, stdio *os.File, undo *undoStack) (err error) {
	if g.stderr, err = bounded(); err != nil {
		return err
	}
	undo.add(g.stderr.Close)
	undo.add(func() error {
		if g.attendant == nil {
			return nil
		}
		return g.attendant.Close()
	})
	_, err = container.Create(context.Background(), container.CreateOptions{
		// Pids in the state are of this supervisor's pid namespace: the state is kept
		// where no program of the host looks for containers of its own.
		Root: s.owner.Dir(), ID: g.id, Bundle: spec.Root.Path, Spec: spec, Owner: s.owner,
		Stdin: stdio, Stdout: stdio, Stderr: g.stderr,
		ClientUID: int(g.client.peer.uid), ClientGID: int(g.client.peer.gid),
		RootFiles: attend.RootFiles(g.policy), Layer: g.layer.mount,
		OnInit: func(c *container.Container) (err error) {
			g.container = c
			g.attendant, err = attend.Start(c, g.policy, attend.Options{
				OnEvent: g.attended, Programs: s.programs, Files: s.files, OwnFiles: bundle.OwnFiles(), Budget: s.budget,
			})
			return err
		},
	})
	if err != nil {
		return fmt.Errorf("creating the guest: %w", err)
	}
	undo.add(func() error { return g.container.Delete(true) })
	return nil
}

// reserve takes a name and an id for a new guest of the client.
func (s *Supervisor) reserve(c *client, name string, p policy.Policy) (*guest, error) {
	id, err := newGuestID()
	if err != nil {
		return nil, err
	}
	g := &guest{
		s: s, id: id, name: name, client: c, policy: p, started: time.Now(),
		ended: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, other := range s.guests {
		if other.client == c && other.name == name && !other.hasEnded() {
			return nil, fmt.Errorf("a guest named %q is already running: close it or choose another name", name)
		}
		if other.client.peer.uid == c.peer.uid {
			same++
		}
	}
	if same >= s.opts.MaxGuests {
		return nil, fmt.Errorf("%w: %v already has %d guests, the most allowed (--max-guests): close one first", errUnavailable, c.peer, same)
	}
	s.guests[id] = g
	return g, nil
}

// adopt begins to wait for a started guest; after it the guest is on its own. It
// fails when the client or the supervisor went meanwhile.
func (s *Supervisor) adopt(g *guest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || g.client.gone() {
		return fmt.Errorf("%w: the connection ended while the guest was being made", errUnavailable)
	}
	g.running = true
	s.running.Add(1)
	go g.wait()
	return nil
}

// newGuestID is the guest's name on the host.
func newGuestID() (string, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("naming the guest: %w", err)
	}
	return "psi-" + hex.EncodeToString(random[:]), nil
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
