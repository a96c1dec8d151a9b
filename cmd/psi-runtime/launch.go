package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// launchOptions are what create and run have in common.
type launchOptions struct {
	id            string
	bundle        string
	consoleSocket string
	pidfdSocket   string
	pidFile       string
	noPivot       bool
	noNewKeyring  bool
	preserveFDs   int
	images        *container.Images // of restore; nil makes a new container
}

func launchFlags() []cli.Flag {
	return append(processFlags(),
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "directory of the bundle (default: the working directory)"},
		&cli.BoolFlag{Name: "no-pivot", Usage: "move the root mount instead of pivoting, for roots on a ramdisk"},
		&cli.BoolFlag{Name: "no-new-keyring", Usage: "inherit the caller's session keyring"},
	)
}

// processFlags are those of every command that starts a process.
func processFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "console-socket", Usage: "unix socket that gets the master end of the terminal"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "unix socket that gets a pidfd of the process"},
		&cli.StringFlag{Name: "pid-file", Usage: "file to write the process id to"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` more file descriptors on (stdio + $LISTEN_FDS + N)"},
	}
}

func parseLaunch(c *cli.Context) launchOptions {
	return launchOptions{
		id:            c.Args().First(),
		bundle:        c.String("bundle"),
		consoleSocket: c.String("console-socket"),
		pidfdSocket:   c.String("pidfd-socket"),
		pidFile:       c.String("pid-file"),
		noPivot:       c.Bool("no-pivot"),
		noNewKeyring:  c.Bool("no-new-keyring"),
		preserveFDs:   c.Int("preserve-fds"),
	}
}

// createOptions turns flags and a bundle into what internal/container wants,
// stdio apart.
func (o *launchOptions) createOptions(g *global, spec *specs.Spec, bundle string) (container.CreateOptions, error) {
	rootless, err := g.rootlessCgroups()
	if err != nil {
		return container.CreateOptions{}, err
	}
	extra, env, err := extraFiles(o.preserveFDs)
	if err != nil {
		return container.CreateOptions{}, err
	}
	if len(env) > 0 && spec.Process != nil {
		p := *spec.Process
		p.Env = append(append([]string{}, p.Env...), env...)
		spec.Process = &p
	}
	pidFile, err := absolute(o.pidFile)
	if err != nil {
		return container.CreateOptions{}, err
	}
	if spec.Hooks == nil { // which would see it too
		// libcontainer passes it on to init, which has one thing to do at a time.
		if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
			return container.CreateOptions{}, err
		}
	}
	return container.CreateOptions{
		Root: g.root, ID: o.id, Bundle: bundle, Spec: spec,
		ExtraFiles: extra, PIDFile: pidFile, Notify: wantsNotify(spec),
		NoPivot: o.noPivot, NoNewKeyring: o.noNewKeyring,
		SystemdCgroup: g.systemdCgroup, RootlessCgroups: rootless,
		LogLevel: logrus.GetLevel(),
	}, nil
}

// make makes the container: a new one, or one from images.
func (o *launchOptions) make(opts container.CreateOptions) (*container.Container, error) {
	if o.images != nil {
		return container.Restore(context.Background(), opts, *o.images)
	}
	return container.Create(context.Background(), opts)
}

// start starts what make made; what was restored runs already.
func (o *launchOptions) start(c *container.Container) (*notifySocket, error) {
	if o.images != nil {
		return nil, nil
	}
	return start(c)
}

// absolute makes a path independent of the working directory; "" stays "".
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// extraFiles collects the descriptors that the caller passes on beyond stdio:
// those of socket activation (LISTEN_FDS, for us by LISTEN_PID) and n more. A
// descriptor that the caller did not pass would be one of Go's own.
func extraFiles(n int) (files []*os.File, env []string, err error) {
	listen := 0
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		if listen, err = strconv.Atoi(os.Getenv("LISTEN_FDS")); err != nil || listen < 0 {
			return nil, nil, fmt.Errorf("LISTEN_FDS %q is not a number of file descriptors", os.Getenv("LISTEN_FDS"))
		}
	}
	if n < 0 {
		return nil, nil, fmt.Errorf("--preserve-fds %d: it is a number of file descriptors", n)
	}
	for fd := 3; fd < 3+listen+n; fd++ {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && fd >= 3+listen && flags&unix.FD_CLOEXEC != 0 {
			err = unix.EBADF // opened by ourselves
		}
		if err != nil {
			return nil, nil, fmt.Errorf("passing file descriptor %d on: %w: the caller must open it", fd, err)
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited:"+strconv.Itoa(fd)))
	}
	if listen > 0 {
		env = []string{"LISTEN_FDS=" + strconv.Itoa(listen), "LISTEN_PID=1"}
	}
	return files, env, nil
}

// dialSocket connects to a unix socket and returns the connection as a file.
func dialSocket(path string) (*os.File, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to socket: %w", err)
	}
	defer conn.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("connecting to socket: not a unix connection")
	}
	return unixConn.File()
}

// checkTerminal refuses combinations in which nobody would hold the terminal.
func checkTerminal(terminal, detach bool, consoleSocket string) error {
	switch {
	case detach && terminal && consoleSocket == "":
		return errors.New("cannot allocate tty if psi-runtime will detach without setting console socket")
	case (!detach || !terminal) && consoleSocket != "":
		return errors.New("cannot use console socket if psi-runtime will not detach or allocate tty")
	}
	return nil
}
