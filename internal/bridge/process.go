package bridge

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is the first process of an engine's container.
type process struct {
	pidfd  *os.File
	raw    syscall.RawConn // of pidfd
	groups groups
	gone   chan struct{} // closed when it has ended; final is what was seen last
	final  figures
}

// openProcess takes hold of a container's first process and begins to wait for its end.
func openProcess(pid int, id string) (*process, error) {
	// Nonblocking, so that Go's poller waits for it instead of a thread.
	fd, err := unix.PidfdOpen(pid, unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening process %d of container %.12s: %w", pid, id, err)
	}
	p := &process{pidfd: os.NewFile(uintptr(fd), "pidfd"), gone: make(chan struct{})}
	// Looked at after it was opened: if the groups are the container's, so is the descriptor.
	p.groups, err = groupsOf(pid, id)
	if err == nil {
		p.raw, err = p.pidfd.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, p.pidfd.Close())
	}
	go p.wait()
	return p, nil
}

// wait closes gone at the end, after a last look at the figures: soon the engine removes
// the cgroups.
func (p *process) wait() {
	defer p.pidfd.Close()
	defer close(p.gone)
	err := p.raw.Read(ended)
	if err != nil { // a kernel whose pidfds Go's poller does not take
		_ = p.raw.Control(func(fd uintptr) {
			for !ended(fd) {
				_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			}
		})
	}
	p.final, _ = p.groups.read()
}

// ended says whether the process of a pidfd is a zombie or gone.
func ended(pidfd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// dead says whether the process has ended.
func (p *process) dead() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// signal sends one; pid 1 of a container takes its whole pid namespace along when it is
// killed. A process that has ended is no error.
func (p *process) signal(s syscall.Signal) error {
	var inner error
	err := p.raw.Control(func(fd uintptr) { inner = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	if errors.Is(inner, unix.ESRCH) || p.dead() { // then the descriptor may be closed
		return nil
	}
	return errors.Join(err, inner)
}
