package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// shutdownPatience bounds how long a supervisor that is asked to end takes to remove
// its guests. They run no more from its beginning; what is left after it is gc's.
const shutdownPatience = 5 * time.Second

// Supervise is the inner process: it makes its namespaces its own, serves, and returns
// when the client has gone, or when it is asked to end. When the process that called
// it ends, everything it started is killed by the kernel.
func Supervise(config Config, log logrus.FieldLogger) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("%s is not a command for people: use `psi-shim serve`", SuperviseCommand)
	}
	if err := ownNamespaces(); err != nil {
		return err
	}
	ctx, stop := asked()
	defer stop()
	dieWithParent()
	go reapOrphans(ctx, log)

	s, err := New(Options{
		RunDir: config.RunDir, Rootfs: config.Rootfs, Version: config.Version, PID: config.PID,
		MaxGuests: config.MaxGuests, Pool: config.Pool, Log: log,
	})
	if err != nil {
		return err
	}
	tools, err := s.listenForRoot()
	if err != nil {
		return errors.Join(err, s.Close(shutdownPatience))
	}
	defer tools.close()
	if config.Socket == "" {
		err = serveEmbedded(ctx, s)
	} else {
		err = serveShared(ctx, s, config)
	}
	return errors.Join(err, s.Close(shutdownPatience))
}

// ownNamespaces makes what the clone flags gave this process usable: mounts made here
// stay here (mounts made on the host still arrive), and /proc shows this pid namespace.
func ownNamespaces() error {
	unix.Umask(0o022)
	if err := unix.Close(fdProgram); err != nil {
		return fmt.Errorf("closing the sealed program: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keeping mounts to this process: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mounting /proc of the new pid namespace: %w", err)
	}
	return nil
}

// asked returns a context that ends when this process is asked to end.
func asked() (context.Context, context.CancelFunc) {
	// The log's reader may be gone before this process: without this the next line of
	// the log would end it, guests and all, before it has cleaned up.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
}

// dieWithParent ends this process when the outer one has gone. The parent death signal
// does the same a little earlier, except for a parent that died before it was set.
func dieWithParent() {
	unix.CloseOnExec(fdParent)
	go func() {
		fds := []unix.PollFd{{Fd: fdParent, Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(fds, -1); err == nil && n == 1 {
				// Not a way to end a program, but pid 1 cannot kill itself by a signal, and
				// nothing may run after this.
				unix.Exit(1)
			}
		}
	}()
}

// serveEmbedded serves the one client whose socket was inherited.
func serveEmbedded(ctx context.Context, s *Supervisor) error {
	conn, err := inheritedConn(fdControl, "control socket")
	if err != nil {
		return err
	}
	unix.CloseOnExec(fdClient)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeConn(conn, os.NewFile(fdClient, "client pidfd"))
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}

// inheritedConn takes over a connected unix stream socket by its number.
func inheritedConn(fd uintptr, name string) (*net.UnixConn, error) {
	file := os.NewFile(fd, name)
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("taking over the %s: %w", name, err)
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("taking over the %s: it is no unix socket", name), conn.Close())
	}
	return socket, nil
}

// serveShared serves everybody who may connect to the socket.
func serveShared(ctx context.Context, s *Supervisor, config Config) error {
	listener, err := listen(config.Socket, config.Group)
	if err != nil {
		return err
	}
	defer listener.close()
	defer context.AfterFunc(ctx, listener.close)()
	for {
		conn, err := listener.accept()
		switch {
		case err == nil:
			go s.ServeConn(conn, nil)
			continue
		case ctx.Err() != nil:
			return nil
		}
		// Descriptors or memory are short: serve the clients there are.
		s.opts.Log.WithError(err).Error("accepting a client")
		time.Sleep(100 * time.Millisecond)
	}
}
