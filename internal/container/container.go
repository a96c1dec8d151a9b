package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Container is one container, made by Create or found by Load. Its methods may be
// called from several goroutines.
type Container struct {
	root, id string
	run      runDir
	lc       *libcontainer.Container // nil for one that was forked by a zygote
	forked   *forked                 // else nil

	// What Create needs while it builds.
	spec        *specs.Spec
	placeholder uint32
	auto        bool

	// The creator's, nil or 0 after Load.
	process child
	started atomic.Bool
	waited  sync.Once
	status  ExitStatus
	waitErr error

	pid   int      // of the first process, in our pid namespace; 0 if it has gone
	pidfd *os.File // nil if it has gone

	lock *os.File // of LoadLocked; else nil

	mapping   sync.Mutex // guards clientIDs
	clientIDs clientIDs

	mu    sync.Mutex // guards entry
	entry entry
}

// child is a child process of ours.
type child interface {
	Wait() (*os.ProcessState, error)
	Signal(os.Signal) error
}

// State is what `state` prints: the OCI state and what runc adds to it.
type State struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"` // 0 when stopped
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

// Load finds a container by its id below root ("" is DefaultRunDir); ErrNotExist,
// ErrInvalidID. Close it after use.
func Load(root, id string) (*Container, error) {
	if root == "" {
		root = defaultRunDir()
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	lc, err := libcontainer.Load(root, id)
	if err != nil {
		return nil, fmt.Errorf("loading container %q: %w", id, err)
	}
	c := &Container{root: root, id: id, lc: lc, run: runDir(defaultRunDir())}
	e, err := findEntry(root, id)
	switch {
	case err == nil:
		c.entry = *e
		c.run = runDir(filepath.Dir(e.path))
	case !errors.Is(err, ErrNotExist):
		return nil, fmt.Errorf("loading container %q: %w", id, err)
	}
	return c, c.openInit()
}

// findEntry finds a container's journal, in the default run directory or in that
// of a root inside another one; ErrNotExist without.
func findEntry(root, id string) (*entry, error) {
	e, err := loadEntry(runDir(defaultRunDir()).journalPath(root, id))
	if errors.Is(err, ErrNotExist) {
		e, err = loadEntry(runDir(filepath.Dir(root)).journalPath(root, id))
	}
	return e, err
}

// openInit pins the first process, if it lives, by a pidfd.
func (c *Container) openInit() error {
	state, err := c.lc.State()
	if err != nil {
		return fmt.Errorf("reading state of container %s: %w", c.id, err)
	}
	if state.InitProcessPid <= 0 {
		return nil
	}
	ref := processRef{PID: state.InitProcessPid, Start: state.InitProcessStartTime}
	f, err := ref.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the first process of container %s: %w", c.id, err)
	}
	c.pid, c.pidfd = ref.PID, f
	return nil
}

// Close releases what this process holds of the container. The container stays.
func (c *Container) Close() error {
	if c.forked != nil {
		_ = c.forked.sync.Close()
	}
	if c.clientIDs.namespace != nil {
		_ = c.clientIDs.namespace.Close()
	}
	_ = c.Unlock()
	if c.pidfd != nil {
		return c.pidfd.Close()
	}
	return nil
}

// ID is the container's id.
func (c *Container) ID() string { return c.id }

// StateDir is where the container's state is, which goes when the container is deleted.
// Only its owner may enter it.
func (c *Container) StateDir() string { return filepath.Join(c.root, c.id) }

// InitPID is the pid of the first process in the caller's pid namespace, for
// display; 0 if it had gone when the container was loaded.
func (c *Container) InitPID() int { return c.pid }

// PIDFD is a pidfd of the first process, readable when it has ended. It belongs
// to the container: do not close it. nil if the process had gone at Load.
func (c *Container) PIDFD() *os.File { return c.pidfd }

// Bundle is the directory of the bundle the container was made of.
func (c *Container) Bundle() string {
	bundle, _ := utils.Annotations(c.config().Labels)
	return bundle
}

// Annotations are those of the bundle.
func (c *Container) Annotations() map[string]string {
	_, annotations := utils.Annotations(c.config().Labels)
	return annotations
}

// Status is created, running, paused or stopped.
func (c *Container) Status() (string, error) {
	s, err := c.currentStatus()
	if err != nil {
		return "", err
	}
	return s.String(), nil
}

// currentStatus is libcontainer's, but for a container that ended while it was paused:
// its cgroup stays frozen, and nobody is left to resume. And libcontainer takes a first
// process that it cannot look at, for lack of descriptors, for one that has ended.
func (c *Container) currentStatus() (libcontainer.Status, error) {
	if c.forked != nil {
		return c.forkedStatus(), nil
	}
	s, err := c.lc.Status()
	if err != nil {
		return s, fmt.Errorf("reading status of container %s: %w", c.id, err)
	}
	switch {
	case s == libcontainer.Paused && c.ended(0):
		return libcontainer.Stopped, nil
	case s == libcontainer.Stopped:
		if err := c.checkStopped(); err != nil {
			return s, fmt.Errorf("reading status of container %s: %w", c.id, err)
		}
	}
	return s, nil
}

// checkStopped says so if the first process has not ended after all.
func (c *Container) checkStopped() error {
	if c.ended(0) {
		return nil
	}
	runs, err := lives(c.pid)
	if err == nil && runs && !c.ended(0) {
		err = errors.New("its first process runs, and could not be looked at a moment ago: perhaps too many open files")
	}
	return err
}

// State reads the state the OCI specification asks for. Owner is the user name,
// or "#uid", of whoever owns the state directory.
func (c *Container) State() (State, error) {
	if c.forked != nil {
		return State{}, errForked
	}
	status, err := c.Status()
	if err != nil {
		return State{}, err
	}
	state, err := c.lc.State()
	if err != nil {
		return State{}, fmt.Errorf("reading state of container %s: %w", c.id, err)
	}
	bundle, annotations := utils.Annotations(state.Config.Labels)
	out := State{
		Version: specs.Version, ID: c.id, PID: state.InitProcessPid, Status: status,
		Bundle: bundle, Rootfs: state.Config.Rootfs, Created: state.Created,
		Annotations: annotations, Owner: ownerName(filepath.Join(c.root, c.id)),
	}
	if c.entry.Rootfs != "" {
		out.Rootfs = c.entry.Rootfs
	}
	if status == libcontainer.Stopped.String() {
		out.PID = 0
	}
	return out, nil
}

// Start lets the first process run the bundle's program.
func (c *Container) Start() error {
	status := libcontainer.Created
	if c.process == nil || c.started.Swap(true) {
		var err error
		if status, err = c.currentStatus(); err != nil {
			return err
		}
	}
	switch status {
	case libcontainer.Created:
	case libcontainer.Stopped:
		return errors.New("cannot start a container that has stopped")
	case libcontainer.Running:
		return errors.New("cannot start an already running container")
	default:
		return fmt.Errorf("cannot start a container in the %s state", status)
	}
	if c.forked != nil {
		return c.startForkedInit()
	}
	if c.needsWatch() {
		return c.startWithHooks()
	}
	if err := c.lc.Exec(); err != nil {
		return fmt.Errorf("starting container %s: %w", c.id, err)
	}
	return nil
}

// Wait waits for the first process to end and returns how it did. Only the
// creator's Container can wait; it may be called more than once.
func (c *Container) Wait() (ExitStatus, error) {
	if c.process == nil {
		return ExitStatus{}, ErrNotCreator
	}
	c.waited.Do(func() {
		ps, err := c.process.Wait()
		if ps == nil {
			c.waitErr = fmt.Errorf("waiting for container %s: %w", c.id, err)
			return
		}
		c.status = exitStatus(ps)
	})
	return c.status, c.waitErr
}

// WaitEnd returns when the first process has ended; anyone may call it.
func (c *Container) WaitEnd() {
	for c.pidfd != nil && !ended(c.pidfd, time.Hour) {
	}
}

// PIDs lists the processes of the container, as pids of our pid namespace.
func (c *Container) PIDs() ([]int, error) {
	if c.forked != nil {
		return nil, errForked
	}
	pids, err := c.lc.Processes()
	if config := c.config(); errors.Is(err, os.ErrNotExist) && config.RootlessCgroups {
		return nil, fmt.Errorf("listing processes of container %s: it has no cgroup of its own: without root there is one only where it may be made, as by --systemd-cgroup", c.id)
	}
	if err != nil {
		return nil, fmt.Errorf("listing processes of container %s: %w", c.id, err)
	}
	return pids, nil
}

// MountNamespace is the inode number of the container's mount namespace, which
// names it as long as the first process lives.
func (c *Container) MountNamespace() (uint32, error) {
	if c.pidfd == nil {
		return 0, ErrNotRunning
	}
	var own, host unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(c.pid)+"/ns/mnt", &own); err != nil {
		return 0, fmt.Errorf("looking at the mount namespace of container %s: %w", c.id, err)
	}
	if err := unix.Stat("/proc/self/ns/mnt", &host); err != nil {
		return 0, os.NewSyscallError("stat", err)
	}
	if own.Ino == host.Ino {
		return 0, fmt.Errorf("container %s has no mount namespace of its own", c.id)
	}
	return uint32(own.Ino), signalFD(c.pidfd, 0) // the pid may have been reused; the pidfd has not
}

// Forked reports whether the first process is a copy of a zygote's, which we made.
func (c *Container) Forked() bool { return c.forked != nil }

// PrivateNet reports whether the container has a network namespace made for it
// by libcontainer, as opposed to the host's or an engine's.
func (c *Container) PrivateNet() bool {
	config := c.config()
	return config.Namespaces.IsPrivate(configs.NEWNET)
}

// Detach lets the container outlive this process: GC leaves it alone from now on,
// and Delete, called by anyone, removes it.
func (c *Container) Detach() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry.Detached = true
	if err := c.entry.write(); err != nil {
		return err
	}
	c.entry.release()
	return nil
}

// SetAttendant writes down the process that serves a detached container from the
// host, so that Delete and GC end it.
func (c *Container) SetAttendant(pid int) error {
	ref, err := refer(pid)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entry.Attendant = ref
	return c.entry.write()
}

// privatePIDs reports whether killing the first process kills all.
func (c *Container) privatePIDs() bool {
	config := c.config()
	return config.Namespaces.IsPrivate(configs.NEWPID)
}

// ended waits up to d for the first process to end.
func (c *Container) ended(d time.Duration) bool {
	return c.pidfd == nil || ended(c.pidfd, d)
}

// signalInit sends sig to the first process.
func (c *Container) signalInit(sig unix.Signal) error {
	if c.pidfd == nil {
		return ErrNotRunning
	}
	return signalFD(c.pidfd, sig)
}
