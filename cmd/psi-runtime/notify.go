package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// A service of systemd that is a container says so itself: when psi-runtime is called
// with $NOTIFY_SOCKET, the program in the container gets a socket of its own,
//
//	program ──READY=1──► /run/notify/notify.sock ──► psi-runtime ──READY=1, MAINPID=…──► $NOTIFY_SOCKET
//
// and start returns when it is ready. Nothing else is passed on: what comes out of a
// container must not tell systemd which processes to watch or to kill.

const (
	notifyVariable = "NOTIFY_SOCKET"
	// barrierPatience is how long systemd gets to take notice.
	barrierPatience = 30 * time.Second
)

// wantsNotify reports whether the container shall get a socket. A psi bundle has
// the mounts that its policy names and no others.
func wantsNotify(spec *specs.Spec) bool {
	return os.Getenv(notifyVariable) != "" && !container.AutoIDs(spec)
}

// notifySocket is the container's socket, seen from our side. A nil one does nothing.
type notifySocket struct {
	conn *net.UnixConn
	host string
	id   string
	pid  int
	init *os.File // a pidfd of our own of the container's first process
}

// listenNotify makes the socket of a container that was created with one.
func listenNotify(c *container.Container) (*notifySocket, error) {
	host, dir := os.Getenv(notifyVariable), c.NotifyDir()
	if host == "" || dir == "" {
		return nil, nil
	}
	path := filepath.Join(dir, container.NotifyName)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("making the container's notify socket: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil { // whatever user the program is
		return nil, errors.Join(err, conn.Close())
	}
	n := &notifySocket{conn: conn, host: host, id: c.ID(), pid: c.InitPID()}
	if c.PIDFD() == nil {
		return nil, errors.Join(container.ErrNotRunning, conn.Close())
	}
	if n.init, err = pidfd(n.pid); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return n, nil
}

// close ends forward.
func (n *notifySocket) close() {
	if n != nil {
		n.conn.Close()
	}
}

// forward passes readiness on. It returns when that has been done, or the container
// has ended.
func (n *notifySocket) forward() {
	if n == nil {
		return
	}
	go func() {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(n.init.Fd()), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				break
			}
		}
		n.close()
	}()
	buf := make([]byte, 4096)
	for {
		size, err := n.conn.Read(buf)
		if err != nil {
			return
		}
		if !isReady(buf[:size]) {
			continue
		}
		if err := n.tell(); err != nil {
			logrus.Warnf("telling %s that container %s is ready: %v", notifyVariable, n.id, err)
		}
		return
	}
}

// isReady looks for READY=1 among the lines of a message.
func isReady(message []byte) bool {
	for line := range bytes.SplitSeq(message, []byte{'\n'}) {
		if string(line) == "READY=1" {
			return true
		}
	}
	return false
}

// sendFile sends a message with a file descriptor.
func sendFile(conn *net.UnixConn, text string, f *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), []byte(text), unix.UnixRights(int(f.Fd())), nil, 0)
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, os.NewSyscallError("sendmsg", sendErr))
}

// tell reports readiness, then waits until it has been noticed: systemd closes the
// descriptor of a barrier when it has come that far.
func (n *notifySocket) tell() error {
	host, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.host, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer host.Close()
	if _, err := host.Write([]byte("READY=1\nMAINPID=" + strconv.Itoa(n.pid) + "\n")); err != nil {
		return err
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = sendFile(host, "BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierPatience)); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("waiting for the barrier: %w", err)
	}
	return nil
}
