package container

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// OpenFiles is a change of RLIMIT_NOFILE of a frozen container's processes; those that they
// start later inherit it. The limit is a process's, and a process may raise none: so what is
// lowered cannot be taken back without CAP_SYS_RESOURCE. Raise what has to be raised first,
// and Lower when nothing else can fail.
type OpenFiles struct {
	c      *Container
	limit  uint64
	before map[int]unix.Rlimit // by process
}

// OpenFiles prepares a change to limit, and finds out whether it may be made.
func (c *Container) OpenFiles(limit uint64) (*OpenFiles, error) {
	group, err := c.UnifiedCgroup()
	if err != nil {
		return nil, err
	}
	pids, err := groupPIDs(group)
	if err != nil {
		return nil, fmt.Errorf("listing processes of container %s: %w", c.id, err)
	}
	o := &OpenFiles{c, limit, make(map[int]unix.Rlimit)}
	return o, o.each(pids, func(pid int) error {
		var before unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
			return err
		}
		o.before[pid] = before
		return nil
	})
}

// Raise raises the limit of the processes that have a lower one. undo takes that back.
func (o *OpenFiles) Raise() (undo func() error, err error) {
	var raised []int
	undo = func() error {
		return o.each(raised, func(pid int) error {
			before := o.before[pid]
			return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil)
		})
	}
	err = o.each(o.with(func(hard uint64) bool { return hard < o.limit }), func(pid int) error {
		raised = append(raised, pid)
		return o.set(pid)
	})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("only a supervisor with CAP_SYS_RESOURCE can raise it: %w", err)
	}
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// Lower lowers the limit of the processes that have a higher one. What they have open
// stays open.
func (o *OpenFiles) Lower() error {
	return o.each(o.with(func(hard uint64) bool { return hard > o.limit }), o.set)
}

func (o *OpenFiles) with(which func(hard uint64) bool) (pids []int) {
	for pid, before := range o.before {
		if which(before.Max) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (o *OpenFiles) set(pid int) error {
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: o.limit, Max: o.limit}, nil)
}

// each calls do for processes as one of the guest's own user, if it has one: else the
// kernel wants CAP_SYS_RESOURCE over a forked guest, and a pid that was reused would do.
// What has ended is left out.
func (o *OpenFiles) each(pids []int, do func(pid int) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if id := int(o.c.entry.IDs.First); id != 0 {
			// The real ids alone, which decide here; what the thread may do stays.
			_, _, gidErr := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(id), ^uintptr(0), ^uintptr(0))
			_, _, uidErr := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(id), ^uintptr(0), ^uintptr(0))
			if gidErr != 0 || uidErr != 0 {
				done <- fmt.Errorf("taking the ids of container %s: %w", o.c.id, errors.Join(gidErr, uidErr))
				return
			}
		}
		for _, pid := range pids {
			if err := do(pid); err != nil && !errors.Is(err, unix.ESRCH) {
				done <- fmt.Errorf("RLIMIT_NOFILE of process %d of container %s: %w", pid, o.c.id, err)
				return
			}
		}
		done <- nil
	}()
	return <-done
}
