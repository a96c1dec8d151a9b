package container

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// inside runs do in the guest's mount namespace, on a thread that nobody else runs on
// meanwhile. The guest's root is do's root and working directory.
func (c *Container) inside(do func() error) error {
	if c.pidfd == nil {
		return fmt.Errorf("container %s has ended", c.id)
	}
	var v visitor
	select {
	case v = <-visitors:
	default:
		v = visitor{visits: make(chan visit)}
		go v.run()
	}
	done := make(chan error, 1)
	v.visits <- visit{c, do, done}
	return <-done
}

// visitor is a thread that enters guests' mount namespaces, one after another, and is in
// this process's own in between: to make one for each takes as long as what it is for.
type visitor struct{ visits chan visit }

type visit struct {
	c    *Container
	do   func() error
	done chan<- error
}

// visitors are those that wait, at home.
var visitors = make(chan visitor, 4)

// home is this process's own mount namespace, and stays open.
var home = sync.OnceValues(func() (int, error) {
	return unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
})

// run goes on visits, as long as there is room for one more to wait in between.
func (v visitor) run() {
	runtime.LockOSThread() // never unlocked
	home, err := home()
	if err == nil {
		err = unix.Unshare(unix.CLONE_FS)
	}
	if err == nil {
		unix.Umask(0)
	}
	for visit := range v.visits {
		if err == nil {
			err = unix.Setns(int(visit.c.pidfd.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			visit.done <- fmt.Errorf("entering the mounts of container %s: %w", visit.c.id, err)
			return
		}
		visit.done <- visit.do()
		if err = unix.Setns(home, unix.CLONE_NEWNS); err != nil {
			return
		}
		select {
		case visitors <- v:
		default:
			return
		}
	}
}

// NetNS opens the network namespace of the container. The caller closes it.
func (c *Container) NetNS() (*os.File, error) { return c.namespace("net") }

// namespace opens a namespace of the container's first process. The caller closes it.
func (c *Container) namespace(kind string) (*os.File, error) {
	if c.pidfd == nil {
		return nil, ErrNotRunning
	}
	f, err := os.Open("/proc/" + strconv.Itoa(c.pid) + "/ns/" + kind)
	if err != nil {
		return nil, fmt.Errorf("opening the %s namespace of container %s: %w", kind, c.id, err)
	}
	// The pid may have been reused between Load and here; the pidfd has not.
	if err := signalFD(c.pidfd, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
