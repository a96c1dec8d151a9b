package container

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// forked is what takes libcontainer's place in a container that a zygote has forked. Such a
// container belongs to the process that made it, for as long as that lives: nobody loads it,
// nothing joins it, and there is no state on disk but its journal.
type forked struct {
	config *configs.Config
	groups cgroups.Manager
	sync   *os.File   // to its first process
	made   chan error // gets one when that is there
	begun  bool       // Start was called
}

// errForked is about what only libcontainer's containers can.
var errForked = errors.New("not possible in a guest that a zygote has forked (isolation: fresh in its policy makes it one of its own)")

// config is the container's configuration; its limits are those with which it was made.
func (c *Container) config() configs.Config {
	if c.forked != nil {
		return *c.forked.config
	}
	return c.lc.Config()
}

func (c *Container) forkedStatus() libcontainer.Status {
	switch {
	case c.ended(0):
		return libcontainer.Stopped
	case c.forked.begun:
		return libcontainer.Running
	}
	return libcontainer.Created
}

// destroy removes the cgroups and the state of a container whose processes have ended.
func (c *Container) destroy() error {
	if c.forked == nil {
		err := c.lc.Destroy()
		// One that was paused is thawed first, while systemd takes its cgroup away.
		for end := time.Now().Add(time.Second); err != nil && c.config().Cgroups.Systemd && time.Now().Before(end); err = c.lc.Destroy() {
			time.Sleep(10 * time.Millisecond)
		}
		return err
	}
	return removeGroups(c.entry.Cgroups)
}

// planForked is makeState's twin: it chooses the cgroups, which are written down before they
// are made.
func (c *Container) planForked(o *CreateOptions, undo *undoStack) error {
	config, err := newConfig(c.spec, o)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	if err := checkForkable(config); err != nil {
		return err
	}
	paths, shared, err := o.Zygote.groupPaths(config, groupName(c.root, c.id))
	if err != nil {
		return fmt.Errorf("choosing the cgroups of container %s: %w", c.id, err)
	}
	if err := refuseForeignGroups(paths); err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	if c.forked == nil { // the zygote's first guest
		if err := c.beginFork(o, undo); err != nil {
			return err
		}
	}
	c.forked.config = config
	c.entry.Cgroups, c.entry.Shared = maps.Clone(paths), shared
	c.entry.owner.use(c.entry.commonGroups())
	if err := c.entry.write(); err != nil {
		return err
	}
	c.forked.groups, err = manager.NewWithPaths(config.Cgroups, paths)
	return err
}

// forkEarly is beginFork, if there is a zygote whose children begin where they have to.
func (c *Container) forkEarly(o *CreateOptions, undo *undoStack) error {
	if o.Zygote == nil || !o.Zygote.placed() {
		return nil
	}
	return c.beginFork(o, undo)
}

// beginFork has the zygote make the first process, which waits. What the container owns on the
// host, its groups and its root are made meanwhile: that takes as long. A crash leaves nothing
// of the process: it ends with its parent.
func (c *Container) beginFork(o *CreateOptions, undo *undoStack) error {
	p, err := newProcess(c.spec.Process)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	words, err := order(o.Filter, p.Rlimits, c.spec.Hostname)
	if err != nil {
		return err
	}
	ours, theirs, err := seqpacket("sync")
	if err != nil {
		return err
	}
	c.forked = &forked{sync: ours, made: make(chan error, 1)}
	gone := make(chan struct{})
	undo.add(func() error { <-gone; return c.abort() })
	wait := o.Zygote.fork(words, o.Stdin, o.Stderr, theirs)
	go func() {
		defer close(gone)
		defer theirs.Close()
		c.forked.made <- c.take(wait())
	}()
	return nil
}

// startForked completes the first process: startInit's twin. On return it waits for Start, or
// is gone.
func (c *Container) startForked(o *CreateOptions, _ *undoStack) error {
	config := c.forked.config
	err := c.makeGroups(config)
	assembly := assembly{config: config, id: c.entry.IDs.First}
	if err == nil {
		assembly.root, err = o.Zygote.makeRoot(c, o)
	}
	if assembly.root != nil {
		defer assembly.root.Close()
	}
	if err = errors.Join(err, <-c.forked.made); err != nil {
		return err
	}
	if err := errors.Join(c.mapIDs(config), c.joinGroups(config)); err != nil {
		return err
	}
	// Both while it begins its session, which takes longer: nobody else has to run.
	if err := c.assemble(assembly); err != nil {
		return err
	}
	if o.OnInit != nil {
		if err := o.OnInit(c); err != nil {
			return err
		}
	}
	_, err = c.receive('s')
	return err
}

// assemble puts the process's root together around it.
func (c *Container) assemble(a assembly) error {
	proc, err := c.receiveProc()
	if err != nil {
		return err
	}
	defer proc.Close()
	a.proc = proc
	if err := c.inside(a.run); err != nil {
		return fmt.Errorf("putting together the root of container %s: %w", c.id, err)
	}
	return nil
}

// take notes the first process, which the zygote has made.
func (c *Container) take(pidfd *os.File, err error) error {
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	c.pidfd = pidfd
	if c.pid, err = pidOf(c.pidfd); err == nil {
		c.process, err = os.FindProcess(c.pid)
	}
	return err
}

// mapIDs writes the maps of the process's user namespace.
func (c *Container) mapIDs(config *configs.Config) error {
	write := func(file string, mappings []configs.IDMap) error {
		text := ""
		for _, m := range mappings {
			text += fmt.Sprintf("%d %d %d\n", m.ContainerID, m.HostID, m.Size)
		}
		return writeGroup("/proc/"+strconv.Itoa(c.pid), file, text)
	}
	if err := errors.Join(write("uid_map", config.UIDMappings), write("gid_map", config.GIDMappings)); err != nil {
		return fmt.Errorf("mapping the ids of container %s: %w", c.id, err)
	}
	return nil
}

// makeGroups makes the cgroups, and sets their limits. systemd makes none without a process.
func (c *Container) makeGroups(config *configs.Config) error {
	limits, err := *config.Cgroups.Resources, error(nil)
	switch {
	case config.Cgroups.Systemd:
		return nil
	case cgroups.IsCgroup2UnifiedMode():
		err = c.forked.groups.Apply(-1) // nobody
	default:
		limits.SkipDevices = true // the zygote's group has them
		for _, dir := range c.entry.Cgroups {
			err = errors.Join(err, makeGroup(dir))
		}
	}
	if err == nil {
		err = c.forked.groups.Set(&limits)
	}
	if err != nil {
		return fmt.Errorf("limiting container %s: %w", c.id, err)
	}
	return nil
}

// joinGroups moves the process into them.
func (c *Container) joinGroups(config *configs.Config) (err error) {
	if config.Cgroups.Systemd {
		if err = c.forked.groups.Apply(c.pid); err == nil {
			err = c.forked.groups.Set(config.Cgroups.Resources)
		}
	} else {
		pid := strconv.Itoa(c.pid)
		for _, dir := range c.entry.Cgroups {
			err = errors.Join(err, writeGroup(dir, "cgroup.procs", pid))
		}
	}
	if err != nil {
		return fmt.Errorf("limiting container %s: %w", c.id, err)
	}
	return nil
}

// receiveProc tells the process that its ids and cgroups are there, and takes the /proc that
// it mounts.
func (c *Container) receiveProc() (*os.File, error) {
	sync := int(c.forked.sync.Fd())
	if err := unix.Send(sync, []byte("m"), unix.MSG_NOSIGNAL); err != nil {
		return nil, c.didNotFork(err)
	}
	proc, err := c.receive('p')
	if err == nil && proc == nil {
		err = c.didNotFork(nil)
	}
	return proc, err
}

// receive takes a word of the process's, and what may come with it.
func (c *Container) receive(word byte) (*os.File, error) {
	var is [1]byte
	file, n, err := receiveFD(int(c.forked.sync.Fd()), is[:])
	if err != nil || n != 1 || is[0] != word {
		return nil, c.didNotFork(err)
	}
	return file, nil
}

// didNotFork is about a process that has ended, and said why on its stderr.
func (c *Container) didNotFork(err error) error {
	return &GuestError{ID: c.id, Err: errors.Join(errors.New("it ended before it began"), err)}
}

// startForkedInit lets the process become the guest.
func (c *Container) startForkedInit() error {
	c.forked.begun = true
	err := unix.Send(int(c.forked.sync.Fd()), []byte("g"), unix.MSG_NOSIGNAL)
	if err = errors.Join(err, c.forked.sync.Close()); err != nil {
		return fmt.Errorf("starting container %s: %w", c.id, err)
	}
	return nil
}
