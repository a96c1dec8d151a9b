package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"

	// The manager of cgroup devices registers itself.
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"

	// The C half of `init`: it joins and makes namespaces before Go's runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

// init keeps the program's first thread for main's goroutine, which nothing but an
// init function can do for certain. While libcontainer starts a container it moves
// a thread into the container's mount namespace and has Go end that thread
// afterwards, which Go cannot do with the first one: it would stay there for good,
// keep the guest's mounts alive, and show them as /proc/self/mountinfo. A main that
// does more than wait had better do it on another goroutine.
//
//nolint:gochecknoinits // only init runs on that thread for certain
func init() { runtime.LockOSThread() }

// MaybeInit must be the first statement of every main (and TestMain) that calls
// Create or Exec. libcontainer starts a container by executing the same binary
// again as `argv[0] init`; in that process MaybeInit becomes the container's
// first process and never returns. `init` is therefore a reserved command word, and
// so are `hook` and `late`.
func MaybeInit() {
	if len(os.Args) < 2 || !slices.Contains([]string{"init", hookWord, lateWord}, os.Args[1]) {
		return
	}
	bePunctual()
	switch os.Args[1] {
	case hookWord:
		fail(errors.New("no hook to become"))
	case lateWord:
		fail(becomeLate(os.Args[2:]))
	}
	// It lives for milliseconds, inside the guest's memory limit: collecting
	// garbage costs more than the garbage.
	debug.SetGCPercent(-1)
	makeRoom()
	knowFilters()
	libcontainer.Init()
}

// fail ends a process that could not become what it should.
func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(127) //nolint:forbidigo // this process is not main's
}
