package container

/*
#include <malloc.h>
#include <stdlib.h>

// psi_grow_heap makes room in C's heap, and keeps it. Nothing of it is touched.
static void psi_grow_heap(void) {
#ifdef __GLIBC__
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	void *volatile room = malloc(16 << 20); // volatile, or the compiler knows better
	free(room);
#endif
}
*/
import "C"

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// A bundle's RLIMIT_AS comes into force before init compiles the seccomp filter, and
// Go's runtime alone has reserved more than a gigabyte: afterwards there may be no
// address space for C's heap or Go's, nor for the stack of one more thread. So init of such a
// bundle takes both before. It is told by a sign that libcontainer passes on as part of
// the log level: "+4" is 4 to whoever reads a number.

const levelVariable = "_LIBCONTAINER_LOGLEVEL"

// setLevel gives the process its log level, and the signs for what it does first.
func setLevel(p *libcontainer.Process, level logrus.Level, filters bool) {
	p.LogLevel = strconv.Itoa(int(level))
	if filters {
		p.LogLevel = filtersSign + p.LogLevel
	}
	if slices.ContainsFunc(p.Rlimits, func(l configs.Rlimit) bool { return l.Type == unix.RLIMIT_AS }) {
		p.LogLevel = "+" + p.LogLevel
	}
}

// makeRoom is called by init, before it does anything else.
func makeRoom() {
	if !strings.HasPrefix(os.Getenv(levelVariable), "+") {
		return
	}
	C.psi_grow_heap()
	spareThreads(4)
	growGoHeap(32 << 20)
}

// growGoHeap has Go's runtime take memory, which it then keeps for later. It is not touched.
func growGoHeap(size int) {
	heap := make([]byte, size)
	runtime.KeepAlive(heap)
	runtime.GC()
}

// spareThreads has Go's runtime start n threads, which it then keeps for later.
func spareThreads(n int) {
	ready, release, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread() // while this one waits, its thread is nobody else's
			ready <- struct{}{}
			<-release
			runtime.UnlockOSThread()
			done <- struct{}{}
		}()
		<-ready
	}
	close(release)
	for range n {
		<-done
	}
}
