package container

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// early calls CreateOptions.OnInit while init is still at work: its namespaces,
// cgroups and limits are made, and what remains (masking /proc, compiling the
// seccomp filter) takes another 5 ms that the host's side need not wait for.
//
//	Create                       early                       init
//	starts init ───────────────────────────────────────────► namespaces, mounts
//	                             receives ◄── pidfd ──────── is ready to be met
//	                             OnInit(c)                   masks, seccomp
//	init is ready ◄──────────────────────────────────────────┘
//	wait() ◄── error or nil ─────┘
//
// The pidfd comes over the socket by which libcontainer serves --pidfd-socket.
type early struct {
	ours, theirs *os.File
	result       chan error
}

// startEarly makes the socket and waits for init on a goroutine.
func startEarly(c *Container, do func(*Container) error) (*early, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	e := &early{
		ours:   os.NewFile(uintptr(pair[0]), "pidfd-ours"),
		theirs: os.NewFile(uintptr(pair[1]), "pidfd-theirs"),
		result: make(chan error, 1),
	}
	go func() { e.result <- e.run(c, do) }()
	return e, nil
}

// errNoInit: init ended before it could be met; libcontainer knows why.
var errNoInit = errors.New("init sent no pidfd")

func (e *early) run(c *Container, do func(*Container) error) error {
	pidfd, err := receivePIDFD(e.ours)
	if err != nil {
		return err
	}
	pid, err := pidOf(pidfd)
	if err != nil {
		pidfd.Close()
		return err
	}
	c.pid, c.pidfd = pid, pidfd
	return do(c)
}

// wait returns what OnInit returned. If starting init failed, nobody may come.
func (e *early) wait(started bool) error {
	e.theirs.Close()
	if !started {
		_ = unix.Shutdown(int(e.ours.Fd()), unix.SHUT_RDWR)
	}
	err := <-e.result
	e.ours.Close()
	return err
}

func receivePIDFD(socket *os.File) (*os.File, error) {
	pidfd, _, err := receiveFD(int(socket.Fd()), make([]byte, 64))
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	if pidfd == nil {
		return nil, errNoInit
	}
	return pidfd, nil
}

// pidOf is the pid, in our pid namespace, of a pidfd's process.
func pidOf(pidfd *os.File) (int, error) {
	data, err := readGroup("/proc/self/fdinfo", strconv.Itoa(int(pidfd.Fd())))
	if err != nil {
		return 0, fmt.Errorf("reading a pidfd: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && pid > 0 {
				return pid, nil
			}
		}
	}
	return 0, errors.New("reading a pidfd: its process has ended")
}
