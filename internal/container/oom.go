package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// OOMEvents reports kills by the container's memory limit: each value is the
// number of processes killed so far. The channel is closed when ctx ends, or no
// process is left, or the cgroup has gone. Reading slowly loses intermediate
// values, never the last.
//
// On cgroup2 memory.events and cgroup.events can be polled; on v1 the kernel signals an eventfd, once
// when it is about to kill and again when the group is removed, so the counter is
// read until it moves.
func (c *Container) OOMEvents(ctx context.Context) (<-chan uint64, error) {
	dir := c.controller("memory")
	if dir == "" {
		return nil, fmt.Errorf("container %s has no memory cgroup", c.id)
	}
	w := oomWatch{dir: dir, out: make(chan uint64, 1)}
	var err error
	if w.v2 = cgroups.IsCgroup2UnifiedMode(); w.v2 {
		w.file = "memory.events"
		w.wake, err = watchEvents(filepath.Join(dir, w.file), filepath.Join(dir, "cgroup.events"))
	} else {
		w.file = "memory.oom_control"
		w.wake, err = watchOOMControl(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("watching memory of container %s: %w", c.id, err)
	}
	stop := context.AfterFunc(ctx, w.wake.stop)
	go func() {
		defer stop()
		w.run(ctx)
	}()
	return w.out, nil
}

// oomWake waits for one of the two kinds of cgroups.
type oomWake interface {
	wait() error
	stop() // wait fails from now on
	Close() error
}

type oomWatch struct {
	dir, file string
	v2        bool
	wake      oomWake // returns when the counter may have moved
	out       chan uint64
}

func (w *oomWatch) run(ctx context.Context) {
	defer close(w.out)
	defer w.wake.Close()
	var last uint64
	for {
		n, err := w.count()
		if err != nil {
			return // the group has gone
		}
		if n != last {
			last = n
			select { // replace a value that nobody has read
			case <-w.out:
			default:
			}
			w.out <- n
		}
		if w.empty() {
			return
		}
		if err := w.wake.wait(); err != nil || ctx.Err() != nil {
			return
		}
		w.settle(ctx, last)
	}
}

func (w *oomWatch) count() (uint64, error) { return groupValue(w.dir, w.file, "oom_kill") }

// empty reports, on cgroup2, that no process is left to be killed.
func (w *oomWatch) empty() bool {
	if !w.v2 {
		return false
	}
	n, err := groupValue(w.dir, "cgroup.events", "populated")
	return err != nil || n == 0
}

// settle gives a v1 kernel, which wakes us before it kills, up to 100 ms to count.
func (w *oomWatch) settle(ctx context.Context, last uint64) {
	for try := 0; !w.v2 && try < 50 && ctx.Err() == nil; try++ {
		if n, err := w.count(); err != nil || n != last {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// watchOOMControl registers an eventfd with a v1 memory group.
func watchOOMControl(dir string) (oomWake, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	f := os.NewFile(uintptr(fd), "eventfd:oom")
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	err = os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return oomControl{f}, nil
}

// oomControl is an eventfd.
type oomControl struct{ *os.File }

func (c oomControl) wait() error {
	_, err := c.Read(make([]byte, 8))
	return err
}

func (c oomControl) stop() { _ = c.SetReadDeadline(time.Unix(1, 0)) }
