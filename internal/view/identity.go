package view

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Identity is whose rights decide what of the host may be shown. The zero value is root.
type Identity struct {
	UID, GID uint32
	Groups   []uint32
}

func (i Identity) String() string { return fmt.Sprintf("uid %d", i.UID) }

// as runs f with somebody's file-system identity: uid, gid and groups, and none
// of root's capabilities over files (the kernel takes those from the effective set
// when the fsuid leaves 0). f runs on a thread of its own that is thrown away
// afterwards, so the identity can never leak to another goroutine; it must not start
// goroutines that open files, nor processes.
//
// Go's own Setgroups changes every thread of the process; the raw call changes one.
func as(who Identity, f func() error) error {
	if who.UID == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := become(who); err != nil {
			done <- fmt.Errorf("taking the identity of %v: %w", who, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func become(who Identity) error {
	var groups unsafe.Pointer
	if len(who.Groups) > 0 {
		groups = unsafe.Pointer(&who.Groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(who.Groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	// Both calls return the previous id and never an error: ask again to know.
	for _, id := range []struct {
		call  uintptr
		name  string
		value uint32
	}{{unix.SYS_SETFSGID, "setfsgid", who.GID}, {unix.SYS_SETFSUID, "setfsuid", who.UID}} {
		_, _, _ = unix.RawSyscall(id.call, uintptr(id.value), 0, 0)
		now, _, _ := unix.RawSyscall(id.call, ^uintptr(0), 0, 0)
		if uint32(now) != id.value {
			return fmt.Errorf("%s(%d): the kernel kept %d", id.name, id.value, uint32(now))
		}
	}
	return nil
}
