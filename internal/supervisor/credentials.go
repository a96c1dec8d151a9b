package supervisor

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// as runs f with the peer's file-system identity: its uid, gid and groups, and none
// of root's capabilities over files (the kernel takes those from the effective set
// when the fsuid leaves 0). f runs on a thread of its own that is thrown away
// afterwards, so the identity can never leak to another goroutine; it must not start
// goroutines that open files, nor processes.
//
// Go's own Setgroups changes every thread of the process; the raw call changes one.
func as(p peer, f func() error) error {
	if p.root() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := become(p); err != nil {
			done <- fmt.Errorf("taking the identity of %v: %w", p, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func become(p peer) error {
	var groups unsafe.Pointer
	if len(p.groups) > 0 {
		groups = unsafe.Pointer(&p.groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	// Both calls return the previous id and never an error: ask again to know.
	for _, id := range []struct {
		call  uintptr
		name  string
		value uint32
	}{{unix.SYS_SETFSGID, "setfsgid", p.gid}, {unix.SYS_SETFSUID, "setfsuid", p.uid}} {
		_, _, _ = unix.RawSyscall(id.call, uintptr(id.value), 0, 0)
		now, _, _ := unix.RawSyscall(id.call, ^uintptr(0), 0, 0)
		if uint32(now) != id.value {
			return fmt.Errorf("%s(%d): the kernel kept %d", id.name, id.value, uint32(now))
		}
	}
	return nil
}
