package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// streams are a foreground process's input and output: either files (stdio) or a
// terminal made inside the container, whose master end init sends us.
type streams struct {
	std *stdio // nil with a terminal

	socket, child *os.File // init sends the master through child
	host          console.Console
	received      chan error // one value, when master is set up or never will be
	master        console.Console
	copied        chan struct{}
}

func openStreams(terminal bool) (*streams, error) {
	if !terminal {
		std, err := foregroundStdio()
		return &streams{std: std}, err
	}
	host, err := hostConsole()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the console socket: %w", err)
	}
	s := &streams{
		host:     host,
		socket:   os.NewFile(uintptr(pair[0]), "console-parent"),
		child:    os.NewFile(uintptr(pair[1]), "console-child"),
		received: make(chan error, 1),
	}
	// On a goroutine, so that the size is set before the program asks: exec returns
	// when the program runs.
	go func() { s.received <- s.receive() }()
	return s, nil
}

// receive waits for the master and sets it up.
func (s *streams) receive() error {
	f, err := receiveFile(s.socket)
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	master, err := console.ConsoleFromFile(f)
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	s.master = master
	s.resize()
	return nil
}

// hostConsole finds the caller's terminal: a standard stream, or /dev/tty if all
// three are redirected.
func hostConsole() (console.Console, error) {
	for _, f := range []*os.File{os.Stderr, os.Stdout, os.Stdin} {
		if c, err := console.ConsoleFromFile(f); err == nil {
			return c, nil
		}
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("the bundle wants a terminal and the caller has none: %w: set process.terminal to false, or detach with --console-socket", err)
	}
	return console.ConsoleFromFile(tty)
}

// files are what the process gets: three files, or a socket for its terminal.
func (s *streams) files() (in, out, err, socket *os.File) {
	if s.std != nil {
		return s.std.in, s.std.out, s.std.err, nil
	}
	return nil, nil, nil, s.child
}

// started is called when init, or the process of an exec, has been started.
func (s *streams) started() error {
	if s.std != nil {
		s.std.started()
		return nil
	}
	s.child.Close()
	if err := <-s.received; err != nil {
		return err
	}
	if err := s.setRaw(); err != nil {
		return fmt.Errorf("setting the caller's terminal to raw mode: %w", err)
	}
	s.copied = make(chan struct{})
	go func() { _, _ = io.Copy(s.master, os.Stdin) }()
	go func() {
		_, _ = io.Copy(os.Stdout, s.master) // ends with EIO when the last user closes
		close(s.copied)
	}()
	return nil
}

// setRaw makes the caller's terminal pass everything through. SetRaw alone leaves it
// turning line feeds into new lines, which the container's terminal does already.
func (s *streams) setRaw() error {
	if err := s.host.SetRaw(); err != nil {
		return err
	}
	fd := int(s.host.Fd())
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	mode.Oflag &^= unix.OPOST
	return unix.IoctlSetTermios(fd, unix.TCSETS, mode)
}

// resize gives the container's terminal the size of the caller's.
func (s *streams) resize() {
	if s.master != nil {
		_ = s.master.ResizeFrom(s.host)
	}
}

// drain waits until the process's last output has been copied.
func (s *streams) drain() {
	switch {
	case s.std != nil:
		s.std.drain()
	case s.copied != nil:
		<-s.copied
	}
}

// restore gives the caller's terminal back.
func (s *streams) restore() {
	if s.host != nil {
		_ = s.host.Reset()
	}
	if s.socket != nil {
		// Whoever waits for a terminal that does not come is told.
		_ = unix.Shutdown(int(s.socket.Fd()), unix.SHUT_RDWR)
		s.socket.Close()
		s.child.Close()
	}
}

// receiveFile receives one file descriptor from a unix socket.
func receiveFile(socket *os.File) (*os.File, error) {
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("no file descriptor came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no file descriptor came")
	}
	if n == 0 {
		return os.NewFile(uintptr(fds[0]), "fd:"+strconv.Itoa(fds[0])), nil
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}
