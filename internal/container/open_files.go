package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenFiles is a change of RLIMIT_NOFILE of a frozen container's processes; those that they
// start later inherit it. The limit is a process's, and a process may raise none: so what is
// lowered cannot be taken back without CAP_SYS_RESOURCE. Raise what has to be raised first,
// and Lower when nothing else can fail.
type OpenFiles struct {
	c      *Container
	limit  unix.Rlimit
	before map[int]unix.Rlimit // by process
}

// OpenFiles prepares a change to limit, and finds out whether it may be made. Processes
// that have less than held, which they have chosen or were given, are left alone.
func (c *Container) OpenFiles(held uint64, limit unix.Rlimit) (*OpenFiles, error) {
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
		if before.Max >= held {
			o.before[pid] = before
		}
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
	err = o.each(o.with(func(hard uint64) bool { return hard < o.limit.Max }), func(pid int) error {
		raised = append(raised, pid)
		return o.set(pid)
	})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("only who has CAP_SYS_RESOURCE can raise it: %w", err)
	}
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// Lower lowers the limit of the processes that have a higher one. What they have open
// stays open.
func (o *OpenFiles) Lower() error {
	return o.each(o.with(func(hard uint64) bool { return hard > o.limit.Max }), o.set)
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
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &o.limit, nil)
}

// ids are those of a process.
type ids struct{ uid, gid uint32 }

// each calls do for processes, as one of their own user: else the kernel wants
// CAP_SYS_RESOURCE over them. A guest of psi's own has one user, and so a pid that was
// reused is none of its. What has ended is left out.
func (o *OpenFiles) each(pids []int, do func(pid int) error) error {
	users := make(map[ids][]int)
	for _, pid := range pids {
		user := ids{o.c.entry.IDs.First, o.c.entry.IDs.First}
		if user.uid == 0 {
			var err error
			if user, err = realIDs(pid); gone(err) != nil {
				return fmt.Errorf("looking at process %d of container %s: %w", pid, o.c.id, err)
			}
		}
		users[user] = append(users[user], pid)
	}
	for user, pids := range users {
		if err := o.as(user, pids, do); err != nil {
			return err
		}
	}
	return nil
}

// realIDs are the real ids of a process.
func realIDs(pid int) (user ids, err error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return user, err
	}
	for _, field := range []struct {
		name string
		into *uint32
	}{{"\nUid:", &user.uid}, {"\nGid:", &user.gid}} {
		_, rest, _ := strings.Cut(string(status), field.name)
		if _, err := fmt.Sscan(rest, field.into); err != nil {
			return user, fmt.Errorf("reading its ids: %w", err)
		}
	}
	return user, nil
}

func (o *OpenFiles) as(user ids, pids []int, do func(pid int) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if user != (ids{}) {
			// The real ids alone, which decide here; what the thread may do stays.
			_, _, gidErr := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(user.gid), ^uintptr(0), ^uintptr(0))
			_, _, uidErr := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user.uid), ^uintptr(0), ^uintptr(0))
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
