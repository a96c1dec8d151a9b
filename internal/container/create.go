package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
)

// CreateOptions say what to make a container of. Spec and ID are required.
type CreateOptions struct {
	Root   string // directory of container states; "" is DefaultRunDir
	ID     string // [A-Za-z0-9_+-.]+, unique below Root
	Bundle string // directory of the bundle; "" is the working directory
	Spec   *specs.Spec

	// Stdin, Stdout and Stderr become the container's; nil is /dev/null. They are
	// handed over as they are (an anonymous pipe is given to the container's root, so
	// that /dev/stdout can be opened): a caller that does not want a terminal of the
	// host inside a container makes pipes. Leave them nil with a ConsoleSocket.
	Stdin, Stdout, Stderr *os.File
	ExtraFiles            []*os.File // fds 3… of the container's first process
	// Pinned lists the destinations of mounts whose sources must lie behind no symbolic
	// link, and be what the guest sees in the end. Idmapped mounts are pinned anyway.
	Pinned []string
	// Confine, if not nil, is put on by the process before it runs its program.
	Confine       *confine.Confinement
	ConsoleSocket *os.File // unix socket to which init sends the terminal's master
	PIDFDSocket   *os.File // unix socket to which init sends its pidfd
	PIDFile       string   // file that gets the first process's pid; "" is none

	// Notify gives the program $NOTIFY_SOCKET, the path of a socket that the caller
	// makes in NotifyDir before Start.
	Notify bool

	NoPivot, NoNewKeyring bool
	SystemdCgroup         bool   // the spec's cgroupsPath is slice:prefix:name
	RootlessCgroups       bool   // go on without the cgroups we may not make
	CgroupParent          string // "" is automatic, see groupPath

	RunDir string // "" is DefaultRunDir
	Owner  *Owner // its run directory is used, if it is not nil

	// For bundles with io.psi.ids=auto:
	ClientUID, ClientGID int               // whose files idmapped mounts show
	Layer                string            // laid over the root, see MountLayer; "" is none
	RootFiles            map[string][]byte // written into the guest's own root, 0644
	MountPoints          []MountPoint      // beside those that the spec's mounts need

	// OnInit, if not nil, is called once the container's namespaces, cgroups and limits
	// exist, and before its program can run: usually on another goroutine, while init
	// is still preparing. Create fails with its error, and may fail after it.
	OnInit func(*Container) error

	// Zygote, if not nil, forks the first process, which is then a copy of the zygote and not
	// the program of the specification. For bundles with io.psi.ids=auto and no bind mounts.
	Zygote *Zygote
	// Filter is the specification's seccomp filter as CompileFilter makes it: for Zygote.
	Filter []byte

	LogLevel logrus.Level // of init; its messages come out of logrus's standard logger
}

// Create makes a container whose first process waits for Start. It fails
// with a *GuestError if the bundle is at fault, and leaves nothing behind if it
// fails at all. Cancelling ctx is noticed between steps.
func Create(ctx context.Context, o CreateOptions) (*Container, error) {
	if o.Zygote != nil {
		return create(ctx, o, (*Container).startForked)
	}
	c, err := create(ctx, o, (*Container).startInit)
	if err == nil {
		c.keepFilter()
	}
	return c, err
}

// create does it; begin starts, or restores, the first process.
func create(ctx context.Context, o CreateOptions, begin func(*Container, *CreateOptions, *undoStack) error) (_ *Container, err error) {
	c, err := plan(&o)
	if err != nil {
		return nil, err
	}
	var undo undoStack
	defer func() {
		if err != nil {
			if undoErr := undo.run(); undoErr != nil {
				err = fmt.Errorf("%w (and undoing it: %w)", err, undoErr)
			}
		}
	}()
	if err = c.forkEarly(&o, &undo); err != nil {
		return nil, err
	}
	// Held until the cgroups exist, so that nobody removes their parents; released
	// before undoing, which removes parents itself.
	lock, err := c.run.share()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err = c.claim(&o, &undo); err != nil {
		return nil, err
	}
	if err = c.makeRoot(&o); err != nil {
		return nil, err
	}
	if err = c.makeState(&o, &undo); err != nil {
		return nil, err
	}
	if err = ctx.Err(); err != nil {
		return nil, err
	}
	var pinned []source
	if c.auto || len(o.Pinned) > 0 {
		if pinned, err = pinSources(c.spec.Mounts, o.Pinned); err != nil {
			return nil, &GuestError{ID: c.id, Err: err}
		}
		defer closeSources(pinned)
	}
	if err = begin(c, &o, &undo); err != nil {
		return nil, err
	}
	if o.Zygote == nil {
		if err = c.checkWrapped(o.Confine); err != nil {
			return nil, &GuestError{ID: c.id, Err: err}
		}
	}
	if err = checkSources(c.pid, pinned); err != nil {
		return nil, &GuestError{ID: c.id, Err: err}
	}
	if err = c.dropRoot(); err != nil {
		return nil, err
	}
	if err = writePIDFile(o.PIDFile, c.pid); err != nil {
		return nil, err
	}
	if err = ctx.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// plan checks and completes the options. It touches nothing.
func plan(o *CreateOptions) (*Container, error) {
	if o.Root == "" {
		o.Root = defaultRunDir()
	}
	if o.RunDir == "" {
		o.RunDir = defaultRunDir()
	}
	if o.Owner != nil {
		o.RunDir = string(o.Owner.run)
	}
	if err := checkSpec(o.Spec); err != nil {
		return nil, fmt.Errorf("container %s: %w", o.ID, err)
	}
	for _, dir := range []*string{&o.Root, &o.RunDir, &o.Bundle} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", *dir, err)
		}
		*dir = abs
	}
	if !validID(o.ID) {
		return nil, fmt.Errorf("%w: %q (letters, digits and _+-. only)", ErrInvalidID, o.ID)
	}
	placeholder, size, auto, err := autoIDs(o.Spec)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", o.ID, err)
	}
	if !auto && (len(o.RootFiles) > 0 || len(o.MountPoints) > 0 || o.Layer != "") {
		return nil, fmt.Errorf("container %s: files can be put into or hidden in the root of a bundle with the annotation io.psi.ids=auto only", o.ID)
	}
	if o.Zygote != nil && (!auto || o.Confine != nil || o.Stdin == nil || o.Stdin != o.Stdout || o.Stderr == nil) {
		return nil, fmt.Errorf("container %s: a zygote makes guests of psi's own only, with one socket as stdin and stdout", o.ID)
	}
	if auto {
		if err := insideBundle(o.Bundle, o.Spec.Root.Path); err != nil {
			return nil, fmt.Errorf("container %s: %w", o.ID, err)
		}
	}
	spec := absolute(o.Spec, o.Bundle)
	if o.Notify {
		spec = withNotify(spec, (&entry{Root: o.Root, ID: o.ID}).notifyDir())
	}
	c := &Container{
		id: o.ID, root: o.Root, run: runDir(o.RunDir), spec: spec,
		placeholder: placeholder, auto: auto,
		entry: entry{
			ID: o.ID, Root: o.Root, Bundle: o.Bundle, Rootfs: spec.Root.Path,
			Created: time.Now().UTC(), IDs: idRange{Size: size},
			path: runDir(o.RunDir).journalPath(o.Root, o.ID), owner: o.Owner,
		},
	}
	switch {
	case o.Zygote != nil: // Filter says it
		c.spec = withoutSeccomp(c.spec)
	case auto:
		c.takeFilter()
	}
	o.Confine, err = c.confinement(o.Confine)
	return c, err
}

// claim takes the container's name and host ids. The journal is the claim on the
// name, and from then on says what there is to undo.
func (c *Container) claim(o *CreateOptions, undo *undoStack) error {
	if _, err := os.Lstat(c.entry.stateDir()); err == nil {
		return fmt.Errorf("container %s below %s: %w", c.id, c.root, ErrExist)
	}
	if err := c.entry.claim(); err != nil {
		return err
	}
	undo.add(func() error {
		return errors.Join(c.entry.undo(c.run), c.entry.owner.leave(c.run, c.entry.commonGroups()))
	})
	if o.Zygote == nil && c.auto {
		c.entry.Mounts = c.entry.path + ".root"
	}
	if err := c.claimIDs(); err != nil {
		return err
	}
	if err := mkdirMode(c.root, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	if c.auto {
		c.spec = withIDs(c.spec, c.placeholder, c.entry.IDs, uint32(o.ClientUID), uint32(o.ClientGID))
	}
	return nil
}

// claimIDs takes a free range, writing each candidate down first. Without ids to
// take it only writes the container down.
func (c *Container) claimIDs() error {
	if !c.auto {
		c.entry.IDs = idRange{}
		return c.entry.write()
	}
	size := c.entry.IDs.Size
	for range 1000 {
		ids, err := pickIDs(size)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
		c.entry.IDs = ids
		if err := c.entry.write(); err != nil {
			return err
		}
		err = c.entry.claimIDs(c.run)
		if err == nil || !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return fmt.Errorf("claiming host ids: 1000 ranges of %d were all in use", size)
}

// makeState has libcontainer make its state directory and choose the cgroups,
// which are written down before they are made.
func (c *Container) makeState(o *CreateOptions, undo *undoStack) error {
	if o.Zygote != nil {
		return c.planForked(o, undo)
	}
	config, err := newConfig(c.spec, o)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	if _, policy := c.spec.Annotations[AnnotationPolicy]; policy && c.auto {
		config.Networks = nil // a loopback that is up: whoever attends it does that, if there is an endpoint
	}
	hooks := adaptHooks(config, c.spec.Hooks)
	c.entry.Late = takeLate(config)
	c.lc, err = libcontainer.Create(c.root, c.id, config)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	// The FIFO that start opens is in there, and anyone may write to it.
	if err := os.Chmod(c.entry.stateDir(), 0o700); err != nil {
		return fmt.Errorf("closing the state directory of container %s: %w", c.id, err)
	}
	if err := c.makeNotifyDir(o.Notify); err != nil {
		return err
	}
	state, err := c.lc.State()
	if err != nil {
		return fmt.Errorf("reading state of container %s: %w", c.id, err)
	}
	if err := refuseForeignGroups(state.CgroupPaths); err != nil {
		return errors.Join(&GuestError{ID: c.id, Err: err}, os.RemoveAll(c.entry.stateDir()))
	}
	undo.add(c.lc.Destroy)
	// The OCI specification wants poststop hooks even for a container that fails to start.
	if c.entry.Hooks = hooks; hooks != nil {
		hooks.Annotations = c.Annotations()
	}
	c.entry.Cgroups = maps.Clone(state.CgroupPaths) // libcontainer empties its map when it removes them
	c.entry.owner.use(c.entry.commonGroups())
	return c.entry.write()
}

// startInit starts the first process. On return it waits for Start, or is gone.
func (c *Container) startInit(o *CreateOptions, undo *undoStack) error {
	p, err := newProcess(c.spec.Process)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	p.Init = true
	config := c.lc.Config()
	setLevel(p, o.LogLevel, mayKnowFilters(&config))
	if err := c.setIO(p, o.Stdin, o.Stdout, o.Stderr); err != nil {
		return err
	}
	p.ExtraFiles, p.ConsoleSocket, p.PidfdSocket = o.ExtraFiles, o.ConsoleSocket, o.PIDFDSocket
	files, err := c.wrap(p, o.Confine)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	defer closeFiles(files)
	var meeting *early
	if o.OnInit != nil && o.PIDFDSocket == nil {
		if meeting, err = startEarly(c, o.OnInit); err != nil {
			return fmt.Errorf("container %s: %w", c.id, err)
		}
		p.PidfdSocket = meeting.theirs
	}
	if err = c.lc.Start(p); err == nil {
		c.process = p
		undo.add(c.abort)
	}
	if meeting != nil {
		if initErr := meeting.wait(err == nil); err == nil {
			return initErr
		}
	}
	if err != nil {
		return errors.Join(&GuestError{ID: c.id, Err: err}, c.Close())
	}
	if err := c.pinInit(p); err != nil {
		return err
	}
	if o.OnInit != nil {
		return o.OnInit(c)
	}
	return nil
}

// pinInit takes hold of the first process, our child, by a pidfd.
func (c *Container) pinInit(p *libcontainer.Process) (err error) {
	if c.pid, err = p.Pid(); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	c.pidfd = os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(c.pid))
	return nil
}

// dropRoot detaches our mount of the guest's root.
func (c *Container) dropRoot() error {
	if c.entry.Mounts == "" {
		return nil
	}
	if err := detachRoot(c.entry.Mounts); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// abort ends the first process of a container that Create gives up.
func (c *Container) abort() error {
	if c.process != nil {
		_ = c.process.Signal(unix.SIGKILL)
		_, _ = c.process.Wait()
	}
	return c.Close()
}
