package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// The attendant of a container that outlives its creator is two processes that
// watch each other and the container, so that killing one of them does not leave a
// guest without its limits:
//
//	psi-runtime create ──starts──► attend ID ──starts──► attend --watch ID
//	      ◄──"ok" or an error────────┘ │  ◄───── polls the other's pidfd ─────► │
//	                                   └── enforces the policy, takes others    └── nothing else
//	                                       (control.PolicySocket)
//
// Whichever finds that the other has died kills the container's cgroup. Both end
// when the container's first process does. Delete ends the first, which ends the second.
//
// readyFD carries the answer: "ok", or the text of an error, then end of file.
const readyFD = 3

const ready = "ok"

type attendOptions struct {
	id    string
	watch bool // be the second process; fd 3 is a pidfd of the first
}

func attendCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "attend",
		Usage:     "enforce a container's policy while it runs (started by create)",
		ArgsUsage: "ID",
		Hidden:    true,
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "watch", Hidden: true}},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 1); err != nil {
				return err
			}
			o := attendOptions{id: c.Args().First(), watch: c.Bool("watch")}
			if o.watch {
				return watchAttendant(g, o.id)
			}
			return attendContainer(g, o.id)
		},
	}
}

// attendDetached starts the attendant of a created container and returns when the
// policy is in force.
func (g *guard) attendDetached(global *global, c *container.Container) error {
	if g == nil {
		return nil
	}
	answer, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the attendant: %w", err)
	}
	defer answer.Close()
	cmd := attendCommandLine(global, c.ID())
	cmd.ExtraFiles = []*os.File{theirs}
	err = startDetached(cmd)
	theirs.Close()
	if err != nil {
		return fmt.Errorf("starting the attendant: %w", err)
	}
	if err := c.SetAttendant(cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if err := answer.SetReadDeadline(time.Now().Add(attendPatience)); err != nil {
		return err
	}
	said, err := io.ReadAll(answer)
	switch {
	case err != nil:
		return fmt.Errorf("waiting for the attendant: %w", err)
	case string(said) == ready:
		return cmd.Process.Release()
	case len(said) == 0:
		return errors.New("the attendant ended without enforcing the policy")
	}
	return errors.New(string(said))
}

// attendCommandLine repeats the global options, so that the attendant finds the
// container and logs to the same place.
func attendCommandLine(g *global, args ...string) *exec.Cmd {
	var all []string
	if g.root != "" {
		all = append(all, "--root", g.root)
	}
	if g.debug {
		all = append(all, "--debug")
	}
	if g.logFile != "" {
		all = append(all, "--log", g.logFile, "--log-format", g.logFormat)
	}
	return exec.Command("/proc/self/exe", append(append(all, "attend"), args...)...)
}

// startDetached starts a process in a session of its own that holds none of our
// files: an engine waits for the end of its pipes.
func startDetached(cmd *exec.Cmd) error {
	if err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// attendContainer is the first process.
func attendContainer(g *global, id string) error {
	answer := os.NewFile(readyFD, "ready")
	err := attendUntilEnd(g, id, answer)
	if err != nil {
		_, _ = answer.WriteString(err.Error())
	}
	return err
}

func attendUntilEnd(g *global, id string, answer *os.File) (err error) {
	c, err := container.Load(g.root, id)
	if err != nil {
		return err
	}
	defer c.Close()
	guard, err := guardAgain(c)
	if err != nil {
		return err
	}
	guard.load()
	defer func() { err = errors.Join(err, guard.unload()) }()
	a, err := guard.attend(c)
	if err != nil {
		return err
	}
	partner, err := startWatch(g, id)
	if err != nil {
		return errors.Join(err, a.end())
	}
	defer partner.Close()
	if _, err := answer.WriteString(ready); err != nil {
		return errors.Join(err, a.end())
	}
	answer.Close()
	if err := outlive(c, partner, "watch"); err != nil {
		return errors.Join(err, a.end())
	}
	return a.end()
}

// startWatch starts the second process and returns a pidfd of it.
func startWatch(g *global, id string) (*os.File, error) {
	own, err := pidfd(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer own.Close()
	cmd := attendCommandLine(g, "--watch", id)
	cmd.ExtraFiles = []*os.File{own}
	if err := startDetached(cmd); err != nil {
		return nil, fmt.Errorf("starting the attendant's watch: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	return pidfd(cmd.Process.Pid)
}

// watchAttendant is the second process.
func watchAttendant(g *global, id string) error {
	c, err := container.Load(g.root, id)
	if err != nil {
		return err
	}
	defer c.Close()
	return outlive(c, os.NewFile(readyFD, "pidfd"), "attendant")
}

// outlive returns when the container's first process has ended. If the partner
// process ends before, it kills the container.
func outlive(c *container.Container, partner *os.File, name string) error {
	if c.PIDFD() == nil {
		return nil
	}
	fds := []unix.PollFd{
		{Fd: int32(c.PIDFD().Fd()), Events: unix.POLLIN},
		{Fd: int32(partner.Fd()), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return errors.Join(os.NewSyscallError("poll", err), c.KillCgroup())
		}
		switch {
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			logrus.Errorf("the %s of container %s has died: killing the container", name, c.ID())
			return c.KillCgroup()
		}
	}
}

func pidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
