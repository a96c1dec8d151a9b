package container

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// Kill sends sig to the first process, or with all to every process of the
// container. ErrNotRunning if the first process has ended (with all: if no
// process is left).
//
// SIGKILL for a container that shares its pid namespace goes to every process:
// nothing else would end the others.
func (c *Container) Kill(sig unix.Signal, all bool) error {
	if !all && (sig != unix.SIGKILL || c.privatePIDs()) {
		status, err := c.currentStatus()
		if err != nil {
			return err
		}
		if status == libcontainer.Stopped {
			return ErrNotRunning
		}
		if err := c.signalInit(sig); err != nil {
			return err
		}
		if sig == unix.SIGKILL { // a frozen v1 group dies only when it is thawed
			for _, dir := range c.groups() {
				thaw(dir)
			}
		}
		return nil
	}
	dir, err := c.memberGroup()
	if err != nil {
		return err
	}
	pids, err := groupPIDs(dir)
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		if c.ended(0) {
			return ErrNotRunning
		}
		return c.signalInit(sig) // it is in no cgroup of ours (rootless)
	}
	if sig == unix.SIGKILL {
		return c.KillCgroup()
	}
	return signalMembers(dir, pids, sig)
}

// KillCgroup ends every process of the container at once and returns when none
// is left (zombies apart), or, if a zygote has forked it, when its first one, and so all,
// cannot live. It is not an error if there was none.
func (c *Container) KillCgroup() error {
	if c.forked != nil {
		if err := c.signalInit(unix.SIGKILL); err != nil && !errors.Is(err, ErrNotRunning) {
			return err
		}
		return nil
	}
	if err := killGroups(c.groups()); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// groups are the container's cgroups by controller; "" is the unified hierarchy.
func (c *Container) groups() map[string]string {
	if c.entry.Cgroups != nil {
		return c.entry.Cgroups
	}
	state, err := c.lc.State() // of another runtime's
	if err != nil {
		return nil
	}
	return state.CgroupPaths
}

// memberGroup is a group that all processes of the container are in.
func (c *Container) memberGroup() (string, error) {
	groups := c.groups()
	for _, controller := range []string{"", "pids", "memory", "devices"} {
		if dir := groups[controller]; dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("container %s has no cgroup to find its processes by", c.id)
}

// UnifiedCgroup is the container's cgroup2 directory, which eBPF programs attach
// to. On a hybrid host it has no controllers but everything else.
func (c *Container) UnifiedCgroup() (string, error) {
	dir := c.groups()[""]
	if dir == "" {
		return "", fmt.Errorf("container %s has no cgroup2 directory: mount cgroup2 at /sys/fs/cgroup or /sys/fs/cgroup/unified", c.id)
	}
	return dir, nil
}

// Cgroup is the container's directory of a v1 controller, or with "" of cgroup2.
func (c *Container) Cgroup(controller string) (string, error) {
	dir := c.groups()[controller]
	if dir == "" {
		return "", fmt.Errorf("container %s has no cgroup of controller %q", c.id, controller)
	}
	return dir, nil
}

// Delete removes the container and everything on the host that goes with it. One
// that has not stopped is refused unless force, which kills it first.
func (c *Container) Delete(force bool) error {
	if !force {
		status, err := c.currentStatus()
		if err != nil {
			return err
		}
		if status != libcontainer.Stopped {
			return fmt.Errorf("cannot delete container %s that is not stopped: %s", c.id, status)
		}
	}
	ended := c.allEnded()
	if !ended {
		if err := c.endAll(); err != nil {
			return err
		}
	}
	// The attendant ends with the container, and takes with it what it put into the kernel.
	if err := c.entry.stopAttendant(); err != nil {
		return fmt.Errorf("container %s: ending its attendant: %w", c.id, err)
	}
	if ended && !c.config().Cgroups.Systemd { // to which they belong
		c.vacate()
	}
	destroyErr := c.destroy()
	if c.process != nil {
		_, _ = c.Wait() // reap it
	}
	return errors.Join(destroyErr, c.forget(destroyErr == nil), c.Close())
}

// vacate removes the cgroups, unless somebody is there: when a container ends, a process
// of exec may have come into them and not yet into the pid namespace, with which it would have
// ended. It is killed; what cannot be done destroy says.
func (c *Container) vacate() {
	for _, dir := range c.groups() {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			_ = c.KillCgroup()
			return
		}
	}
}

// allEnded reports whether nobody has to be killed: when the first process of a pid namespace
// has ended, the kernel has killed the others. The groups of a paused container libcontainer
// thaws first, and systemd's are not ours to remove.
func (c *Container) allEnded() bool {
	if !c.ended(0) || !c.privatePIDs() || c.config().Cgroups.Systemd && c.process == nil {
		return false
	}
	if c.forked != nil {
		return true
	}
	status, err := c.lc.Status()
	return err == nil && status == libcontainer.Stopped
}

// endAll kills every process and waits until the first one has ended.
func (c *Container) endAll() error {
	err := c.KillCgroup()
	if err != nil || !c.ended(0) {
		// Not in its cgroups (rootless), or not yet dead.
		_ = c.signalInit(unix.SIGKILL)
		if !c.ended(killPatience) {
			return errors.Join(err, fmt.Errorf("container %s: init still running", c.id))
		}
	}
	return nil
}

// forget removes what the journal names beyond what libcontainer has destroyed.
// A container that another program made has no journal.
func (c *Container) forget(destroyed bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entry.path == "" {
		return nil
	}
	var err error
	if destroyed {
		err = c.entry.forget(c.run)
	} else {
		err = c.entry.undo(c.run)
	}
	if err != nil {
		return err
	}
	return c.entry.owner.leave(c.run, c.entry.commonGroups())
}
