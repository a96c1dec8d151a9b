package container

/*
#include <malloc.h>
#include <sys/prctl.h>

// Before Go's threads begin, which inherit it. A runtime lives for some 5 ms, and this is a
// seventh of them: Go's sysmon asks to be woken every 20 µs while anything runs, which also takes
// a fifth of the cpu time of a supervisor that makes guests; and the C library would map and
// unmap 128 MiB of address space for each thread.
__attribute__((constructor)) static void spare(void)
{
	prctl(PR_SET_TIMERSLACK, 500000, 0, 0, 0);
	mallopt(M_ARENA_MAX, 1);
}
*/
import "C"

import "golang.org/x/sys/unix"

// defaultTimerSlack is by how many nanoseconds the kernel may be late to wake a process that
// did not ask for anything else.
const defaultTimerSlack = 50_000

// bePunctual gives this thread, and what it executes, the kernel's timer slack.
func bePunctual() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, defaultTimerSlack, 0, 0, 0) }
