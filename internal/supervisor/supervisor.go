package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/bundle"
)

// Options configure a Supervisor.
type Options struct {
	RunDir    string // where owners and ids are written down; "" is container.DefaultRunDir
	Rootfs    string // the root file system of guests that name none, and the only one for clients that are not root
	Version   string // what hello answers, such as "psi-shim 0.1.0"
	PID       int    // what hello answers: this process as the host knows it, for display
	MaxGuests int    // guests that one uid may have at a time; 0 is 256
	Pool      PoolOptions
	Log       logrus.FieldLogger
}

// Supervisor makes, watches and ends guests for the clients that are connected.
// Its methods may be called from any goroutine.
type Supervisor struct {
	opts      Options
	warmth    cgroupWarmth
	owner     *container.Owner
	place     string                // private directory for the mounts of layers
	programs  *enforce.Programs     // shared by all guests; nil if this host has no eBPF
	files     *enforce.FilePrograms // the host's; nil if it has no BPF-LSM: mounts hold file rules then
	throttles *enforce.Throttles
	budget    *attend.Budget    // of descriptors for guests' connections
	root      bundle.RootfsInfo // of Options.Rootfs; zero if it names none
	layers    layers            // that hold import lists
	policies  policies
	pool      *pool
	zygotes   *zygotes
	removing  chan struct{}  // a slot per guest being taken away
	pending   atomic.Int32   // ended guests of which something is left
	running   sync.WaitGroup // guests whose removal has not ended
	serving   sync.WaitGroup // connections

	mu       sync.Mutex // guards the fields below
	guests   map[string]*guest
	clients  map[*client]struct{}
	plans    map[string]blankPlan     // by kind
	spawning map[uint32]chan struct{} // by uid: a slot per spawn under way
	closing  bool
}

// maxClients is how many connections one uid may have at a time.
const maxClients = 64

// removers bounds the background work of taking ended guests away.
const removers = 4

// maxPending is how many ended guests may wait to be taken away before no more are made.
const maxPending = 128

// New prepares to serve: it removes what dead owners left on the host, and takes
// ownership of what this supervisor is going to make. It must run in a mount
// namespace of its own (see Supervise).
func New(opts Options) (_ *Supervisor, err error) {
	if opts.MaxGuests == 0 {
		opts.MaxGuests = 256
	}
	s := &Supervisor{
		opts: opts, guests: make(map[string]*guest), clients: make(map[*client]struct{}),
		plans: make(map[string]blankPlan), spawning: make(map[uint32]chan struct{}), removing: make(chan struct{}, removers), throttles: enforce.NewThrottles(),
	}
	var undo undoStack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	if opts.Rootfs != "" {
		if s.root, err = bundle.Inspect(opts.Rootfs); err != nil {
			return nil, err
		}
	}
	// What a crash left is no reason not to serve.
	report, err := container.GC(opts.RunDir)
	if err != nil {
		opts.Log.WithError(err).Warn("removing what dead owners left")
	}
	if len(report.Containers)+len(report.Strays) > 0 {
		opts.Log.WithField("guests", report.Containers).WithField("strays", report.Strays).Info("removed what dead owners left")
	}
	for _, each := range report.Unseen {
		opts.Log.WithField("container", each.ID).WithField("root", each.Root).Warn("left alone: it lives, and its state cannot be seen from here")
	}
	if s.budget, err = attend.NewBudget(); err != nil {
		return nil, err
	}
	if s.owner, err = container.OpenOwner(opts.RunDir); err != nil {
		return nil, err
	}
	undo.add(s.owner.Close)
	if s.place, err = mountPlace(s.owner.Dir()); err != nil {
		return nil, err
	}
	undo.add(func() error { return unmountPlace(s.owner.Dir()) })
	s.pool, s.zygotes = newPool(s, opts.Pool), newZygotes(s)
	// Loading once here instead of for each guest saves milliseconds per spawn. A host
	// that cannot do it can still run guests whose policy allows that.
	var unsupported error
	if s.programs, unsupported = enforce.Load(); unsupported != nil {
		opts.Log.WithError(unsupported).Warn("loading the network programs")
	}
	if s.files, unsupported = enforce.LoadFiles(); unsupported != nil {
		opts.Log.WithError(unsupported).Info("file rules are held by mounts")
	}
	return s, nil
}

// ServeConn serves one client and returns when it is gone. process is a pidfd of the
// client to watch beside the connection; nil leaves that to the socket's own.
func (s *Supervisor) ServeConn(conn *net.UnixConn, process *os.File) {
	who, err := peerOf(conn)
	if err != nil {
		s.opts.Log.WithError(err).Warn("refusing a client")
		_ = conn.Close()
		return
	}
	if process != nil {
		closeFile(who.process)
		who.process = process
	}
	defer closeFile(who.process)
	c := &client{
		s: s, conn: conn, peer: who, log: s.opts.Log.WithField("uid", who.uid),
		flying: make(chan struct{}, maxInFlight), out: make(chan message, queueLength),
	}
	if err := s.admit(c); err != nil {
		c.log.WithError(err).Warn("refusing a client")
		_ = conn.Close()
		return
	}
	defer s.serving.Done()
	c.serve()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
}

// admit enters a client in the table.
func (s *Supervisor) admit(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return fmt.Errorf("%w: it is shutting down", errUnavailable)
	}
	same := 0
	for other := range s.clients {
		if other.peer.uid == c.peer.uid {
			same++
		}
	}
	if same >= maxClients {
		return fmt.Errorf("%w: %v already has %d connections", errUnavailable, c.peer, same)
	}
	s.clients[c] = struct{}{}
	s.serving.Add(1)
	return nil
}

// Close ends every guest, tells the clients, ends the connections and gives back
// everything on the host. What cannot be removed within the patience is left to the
// next gc; nothing of it runs.
func (s *Supervisor) Close(patience time.Duration) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.pool.close()
	s.endGuests(func(*guest) bool { return true }, control.CauseSupervisor, "the supervisor is shutting down")
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.running.Wait()
		s.zygotes.close()
		s.dropClients()
		s.serving.Wait()
	}()
	var err error
	select {
	case <-done:
	case <-time.After(patience):
		err = fmt.Errorf("shutting down: not everything was removed within %v; `psi-runtime gc` will do the rest", patience)
	}
	if s.programs != nil {
		err = errors.Join(err, s.programs.Close())
	}
	if s.files != nil {
		err = errors.Join(err, s.files.Close())
	}
	return errors.Join(err, s.throttles.Close(), unmountPlace(s.owner.Dir()), s.owner.Close())
}

func (s *Supervisor) dropClients() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.drop(fmt.Errorf("%w: it is shutting down", errUnavailable))
	}
}

// enterSpawn waits for a slot for a spawn; leave gives it back. Each user has slots of
// its own: a spawn may hang for as long as a file system of its user hangs.
func (s *Supervisor) enterSpawn(c *client) (leave func(), err error) {
	s.mu.Lock()
	slots := s.spawning[c.peer.uid]
	if slots == nil {
		slots = make(chan struct{}, max(8, 4*runtime.NumCPU()))
		s.spawning[c.peer.uid] = slots
	}
	s.mu.Unlock()
	slots <- struct{}{}
	leave = func() { <-slots }
	if s.isClosing() || c.gone() {
		leave()
		return nil, fmt.Errorf("%w: it is shutting down", errUnavailable)
	}
	return leave, nil
}

// begin counts a guest that is being made; running.Done ends it. It waits while so much of
// ended ones is left that the host's tables would fill up.
func (s *Supervisor) begin() error {
	for s.pending.Load() >= maxPending && !s.isClosing() {
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return fmt.Errorf("%w: it is shutting down", errUnavailable)
	}
	s.running.Add(1)
	return nil
}

func (s *Supervisor) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// find returns a guest of the client's uid that runs. The answer for somebody else's
// guest is the same as for none.
func (s *Supervisor) find(c *client, id string) (*guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[id]
	if g == nil || !g.running || g.client.peer.uid != c.peer.uid {
		return nil, fmt.Errorf("no guest %q runs here", clip(id, 64))
	}
	return g, nil
}

// endGuests kills the guests that which chooses, at once, and returns when none of
// their processes runs. cause and message are what their clients are told.
func (s *Supervisor) endGuests(which func(*guest) bool, cause, message string) {
	s.mu.Lock()
	var ending []*guest
	for _, g := range s.guests {
		if g.running && which(g) {
			ending = append(ending, g)
		}
	}
	s.mu.Unlock()
	var wait sync.WaitGroup
	for _, g := range ending {
		wait.Go(func() {
			g.ask(cause, message)
			if err := g.kill(); err != nil {
				s.opts.Log.WithError(err).Error("ending guest")
			}
		})
	}
	wait.Wait()
}

// forget takes a guest out of the table: nobody finds it any more.
func (s *Supervisor) forget(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.guests, g.id)
	if g.client != nil {
		g.client.remember(g.id)
	}
}

// remove takes away what is left of an ended guest on the host.
func (s *Supervisor) remove(g *guest) {
	s.pending.Add(1)
	defer s.pending.Add(-1)
	s.removing <- struct{}{}
	defer func() { <-s.removing }()
	g.life.Lock()
	defer g.life.Unlock()
	err := errors.Join(g.container.Delete(true), g.stderr.Close())
	if err != nil {
		s.opts.Log.WithError(err).WithField("guest", g.id).Error("removing guest")
	}
}

// push sends a message about a guest to its client, and to those connections of the
// same uid that watch.
func (s *Supervisor) push(g *guest, m any) {
	for _, c := range s.audience(g) {
		c.send(m, nil, false)
	}
}

// offer is push for what may be left out: it goes to those who have room for it, and
// says whether the guest's own client has.
func (s *Supervisor) offer(g *guest, m any) (told bool) {
	for _, c := range s.audience(g) {
		if c.offer(m) && c == g.client {
			told = true
		}
	}
	return told
}

func (s *Supervisor) audience(g *guest) (to []*client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		if c == g.client || c.watch.Load() && c.peer.uid == g.client.peer.uid {
			to = append(to, c)
		}
	}
	return to
}

// watchProcess calls gone once when the process of a pidfd ends. stop ends the watch
// and returns when gone neither runs nor will.
func (s *Supervisor) watchProcess(pidfd *os.File, gone func()) (stop func()) {
	if pidfd == nil {
		return func() {}
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		s.opts.Log.WithError(err).Error("watching a client's process")
		gone()
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ended := pollEither(int(pidfd.Fd()), wake); ended {
			gone()
		}
	}()
	return func() {
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-done
		_ = unix.Close(wake)
	}
}

// pollEither waits for one of two descriptors to become readable: true for the first.
func pollEither(first, second int) bool {
	fds := []unix.PollFd{{Fd: int32(first), Events: unix.POLLIN}, {Fd: int32(second), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err == nil {
			return fds[0].Revents != 0
		}
	}
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close()
	}
}
