package main

import (
	"os"
	"os/signal"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// signals collects every signal that reaches us until somebody forwards them.
type signals struct {
	received chan os.Signal
	all      chan struct{} // closed when every signal is caught
}

// catchSignals begins to catch. SIGCHLD at once, because an exit must not be
// missed; the other sixty cost a system call or two each, and are registered
// while the container is being made.
func catchSignals() *signals {
	s := &signals{received: make(chan os.Signal, 2048), all: make(chan struct{})}
	signal.Notify(s.received, unix.SIGCHLD)
	go func() {
		signal.Notify(s.received)
		close(s.all)
	}()
	return s
}

// ready returns when every signal is caught.
func (s *signals) ready() { <-s.all }

// forward passes signals on to the container's first process until it ends, reaps
// whatever else becomes our child, and returns the status as a shell shows it.
func (s *signals) forward(c *container.Container, streams *streams) int {
	for sig := range s.received {
		switch sig {
		case unix.SIGWINCH:
			streams.resize()
		case unix.SIGCHLD:
			if status, ended := reap(c.InitPID()); ended {
				return status.Shell()
			}
		case unix.SIGURG: // Go's scheduler sends it to itself
		default:
			num, ok := sig.(unix.Signal)
			if !ok {
				continue
			}
			if err := c.Kill(num, false); err != nil {
				logrus.Debugf("forwarding signal %v: %v", num, err)
			}
		}
	}
	return 0
}

// forwardTo does the same for a process that exec started. The container's own
// children are not ours, so there is nothing else to reap.
func (s *signals) forwardTo(p *container.Process, streams *streams) (int, error) {
	type result struct {
		status container.ExitStatus
		err    error
	}
	ended := make(chan result, 1)
	go func() {
		status, err := p.Wait()
		ended <- result{status, err}
	}()
	for {
		select {
		case r := <-ended:
			return r.status.Shell(), r.err
		case sig := <-s.received:
			s.pass(sig, p, streams)
		}
	}
}

func (s *signals) pass(sig os.Signal, p *container.Process, streams *streams) {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG:
	case unix.SIGWINCH:
		streams.resize()
	default:
		if num, ok := sig.(unix.Signal); ok {
			if err := p.Signal(num); err != nil {
				logrus.Debugf("forwarding signal %v: %v", num, err)
			}
		}
	}
}

// reap waits for every child that has ended and tells whether init was among them.
func reap(init int) (status container.ExitStatus, ended bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return status, ended
		}
		if pid == init {
			status, ended = container.ExitStatus{Code: ws.ExitStatus()}, true
			if ws.Signaled() {
				status = container.ExitStatus{Signal: ws.Signal()}
			}
		}
	}
}
