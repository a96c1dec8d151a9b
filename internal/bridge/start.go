package bridge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// ask is what a guest is started with.
type ask struct {
	name   string
	policy *policy.Policy // nil: the command's container has the one that it was made with
}

// start runs the command and returns when the guest's agent has begun to speak, with the
// client's end of its channel. When ctx ends first, or on error, nothing of it is left.
func (b *Bridge) start(ctx context.Context, a ask) (_ *guest, outside *os.File, err error) {
	g, err := b.prepare(a)
	if err != nil {
		return nil, nil, err
	}
	outside, inside, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	err = g.run(inside)
	inside.Close()
	if err != nil {
		outside.Close()
		return nil, nil, err
	}
	if err = g.speaks(ctx, outside); err == nil {
		err = g.find()
	}
	close(g.found)
	if err != nil {
		outside.Close()
		g.ask(control.CauseClosed, "")
		return nil, nil, errors.Join(err, g.kill())
	}
	return g, outside, nil
}

// prepare makes the command line.
func (b *Bridge) prepare(a ask) (*guest, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("naming the guest: %w", err)
	}
	id := "psi-" + hex.EncodeToString(random[:])
	g := &guest{
		b: b, id: id, name: a.name, cidfile: filepath.Join(b.dir, id+".cid"), policy: a.policy,
		started: time.Now(), found: make(chan struct{}), left: make(chan struct{}), ended: make(chan struct{}),
	}
	words := b.command.words
	if b.command.known() {
		flags := []string{"--cidfile=" + g.cidfile}
		if a.policy != nil {
			splits, err := b.splits()
			if err != nil {
				return nil, err
			}
			more, err := policyFlags(b.command, *a.policy, splits)
			if err != nil {
				return nil, err
			}
			flags = append(flags, more...)
		}
		words = b.command.with(flags...)
	}
	g.cmd = exec.Command(words[0], words[1:]...)
	return g, nil
}

// run starts the command on the guest's end of the channel.
func (g *guest) run(inside *os.File) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting %s: %w", g.b.command.engine(), err)
	}
	g.cmd.Stdin, g.cmd.Stdout, g.cmd.Stderr = inside, inside, write
	// A group of its own: ^C at a terminal is the bridge's to handle, and what the command
	// has started is killed with it.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	g.b.starts <- func() { started <- g.cmd.Start() }
	err = <-started
	write.Close()
	if err != nil {
		read.Close()
		return fmt.Errorf("starting %s: %w", g.b.command.engine(), err)
	}
	go g.wait(read)
	return nil
}

// speaks waits until something has come out of the guest.
func (g *guest) speaks(ctx context.Context, outside *os.File) error {
	conn, err := net.FileConn(outside)
	if err != nil {
		return fmt.Errorf("waiting for the guest: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return fmt.Errorf("waiting for the guest: %w", err)
	}
	var n int
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		n, _, inner = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(inner, unix.EAGAIN)
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("waiting for the guest: %w", ctx.Err())
	case err != nil || inner != nil:
		return fmt.Errorf("waiting for the guest: %w", errors.Join(err, inner))
	case n == 0:
		return g.stillborn()
	}
	return nil
}

// stillborn says why the command ended before the guest spoke.
func (g *guest) stillborn() error {
	select {
	case <-g.left:
	case <-time.After(endPatience):
		return fmt.Errorf("%s closed the guest's stdout before the guest said a word, and goes on running: is its image one of `psi-runtime rootfs build`? %v", g.b.command.engine(), &g.stderr)
	}
	what := "the guest ended before it said a word: is its image one of `psi-runtime rootfs build`?"
	switch g.cmd.ProcessState.ExitCode() {
	case 125:
		what = "the engine failed"
	case 126:
		what = "the image's entry point could not be run"
	case 127:
		what = "the image's entry point, or the engine's command, was not found"
	}
	return fmt.Errorf("%s: %s (%v): %v", g.b.command.engine(), what, g.cmd.ProcessState, &g.stderr)
}

// find learns which container the guest is, and that it is what was asked for.
func (g *guest) find() error {
	if !g.b.command.known() {
		return nil
	}
	data, err := os.ReadFile(g.cidfile)
	if err != nil || len(data) == 0 {
		return fmt.Errorf("%s has written no container id: %w", g.b.command.engine(), err)
	}
	g.container = strings.TrimSpace(string(data))
	// The last part may hold anything.
	format := "{{.State.Pid}}\n{{.OCIRuntime}}\n{{index .Config.Annotations \"" + bundle.PolicyKey + "\"}}"
	if g.b.command.engine() == "docker" {
		format = "{{.State.Pid}}\n{{.HostConfig.Runtime}}\n"
	}
	said, err := g.b.command.ask("inspect", "--format", format, g.container)
	if err != nil {
		return err
	}
	parts := append(strings.SplitN(said, "\n", 3), "", "")
	pid, err := strconv.Atoi(parts[0])
	if err != nil || pid <= 0 {
		return fmt.Errorf("%s knows no process of container %.12s (%q): %v", g.b.command.engine(), g.container, parts[0], &g.stderr)
	}
	if g.process, err = openProcess(pid, g.container); err != nil {
		return err
	}
	if g.policy == nil {
		return nil
	}
	if filepath.Base(parts[1]) != "psi-runtime" {
		return fmt.Errorf("%w: the container's runtime is %s, which reads no policy: add --runtime psi-runtime before run", control.ErrPolicy, parts[1])
	}
	if parts[2] != string(g.policy.Canonical()) {
		return fmt.Errorf("%w: %s has changed the policy on its way to psi-runtime: %.200q", control.ErrPolicy, g.b.command.engine(), parts[2])
	}
	return nil
}

// socketPair makes the channel: the client's end and the guest's.
func socketPair() (outside, inside *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the guest's channel: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel of the guest"), nil
}

// ownSession keeps signals of a terminal from a process.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
