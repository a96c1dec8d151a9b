package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// clientIDs is the id map under which a client's files are shown to the guest.
type clientIDs struct {
	uid, gid  int
	namespace *os.File
}

// MapClient prepares to show files of a client. Apply does it if nobody else has.
func (c *Container) MapClient(uid, gid int) error {
	c.mapping.Lock()
	defer c.mapping.Unlock()
	if c.clientIDs.namespace != nil && c.clientIDs.uid == uid && c.clientIDs.gid == gid {
		return nil
	}
	var ids *os.File
	var err error
	if uid == 0 && gid == 0 && c.entry.IDs.Size == 1 {
		ids, err = c.ownNamespace()
	}
	if ids == nil && err == nil {
		ids, err = idmapNamespace(c.entry.IDs.First, uid, gid)
	}
	if err != nil {
		return fmt.Errorf("mapping the client's ids: %w", err)
	}
	if c.clientIDs.namespace != nil {
		_ = c.clientIDs.namespace.Close()
	}
	c.clientIDs = clientIDs{uid, gid, ids}
	return nil
}

// ownNamespace is the guest's own user namespace, which maps root to it: for files of root's there
// need not be another. Nil if its first process is in one of its own making, whose map it would
// have chosen.
func (c *Container) ownNamespace() (*os.File, error) {
	found, err := c.namespace("user")
	if err != nil {
		return nil, err
	}
	var parent, ours unix.Stat_t
	fd, err := unix.IoctlRetInt(int(found.Fd()), unix.NS_GET_PARENT)
	if err == nil {
		err = unix.Fstat(fd, &parent)
		_ = unix.Close(fd)
	}
	if err == nil {
		err = unix.Stat("/proc/self/ns/user", &ours)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("finding out whose the user namespace of container %s is: %w", c.id, err), found.Close())
	}
	if parent.Ino != ours.Ino || parent.Dev != ours.Dev {
		return nil, found.Close()
	}
	return found, nil
}

// idmapNamespace makes a user namespace whose only use is its id map: the client's files are the
// guest's. It takes a fork of this process, a millisecond or two, and as long again in the copies of
// its pages.
func idmapNamespace(guest uint32, uid, gid int) (*os.File, error) {
	one := func(client int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: client, HostID: int(guest), Size: 1}}
	}
	// The process is stopped before its first instruction, and killed there.
	runtime.LockOSThread() // the one that traces it
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"psi-ids"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: one(uid), GidMappings: one(gid), Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Kill(); _, _ = p.Wait() }()
	return os.Open(filepath.Join("/proc", strconv.Itoa(p.Pid), "ns", "user"))
}
