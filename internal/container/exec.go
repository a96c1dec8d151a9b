package container

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
)

// ProcessOptions describe one more process for a container that runs.
type ProcessOptions struct {
	Process               *specs.Process
	Stdin, Stdout, Stderr *os.File // nil is /dev/null
	ExtraFiles            []*os.File
	ConsoleSocket         *os.File
	PIDFDSocket           *os.File
	PIDFile               string
	// SubCgroups are existing groups below the container's, by controller; the
	// key is "" for cgroup2 or for one path in all of v1.
	SubCgroups   map[string]string
	Confine      *confine.Confinement // as for Create
	IgnorePaused bool                 // start it although the container is paused
	LogLevel     logrus.Level
}

// Process is a process that Exec started, a child of the caller.
type Process struct {
	p   *libcontainer.Process
	pid int
}

// PID is in the caller's pid namespace.
func (p *Process) PID() int { return p.pid }

// Signal sends sig; it fails if the process has been waited for.
func (p *Process) Signal(sig unix.Signal) error { return p.p.Signal(sig) }

// Wait waits for the process to end and releases it. Call it once.
func (p *Process) Wait() (ExitStatus, error) {
	ps, err := p.p.Wait()
	if ps == nil {
		return ExitStatus{}, fmt.Errorf("waiting for process %d: %w", p.pid, err)
	}
	return exitStatus(ps), nil
}

// Exec starts a process in the container's namespaces, cgroups and limits. The
// container must be created, running, or (with IgnorePaused) paused.
func (c *Container) Exec(o ProcessOptions) (*Process, error) {
	if c.forked != nil {
		return nil, errForked
	}
	status, err := c.currentStatus()
	if err != nil {
		return nil, err
	}
	if status == libcontainer.Stopped {
		return nil, errors.New("cannot exec in a stopped container")
	}
	if status == libcontainer.Paused && !o.IgnorePaused {
		return nil, errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	if err := checkProcess(o.Process); err != nil {
		return nil, err
	}
	p, err := newProcess(o.Process)
	if err != nil {
		return nil, err
	}
	setLevel(p, o.LogLevel, false)
	if err := c.setIO(p, o.Stdin, o.Stdout, o.Stderr); err != nil {
		return nil, err
	}
	p.ExtraFiles, p.ConsoleSocket, p.PidfdSocket = o.ExtraFiles, o.ConsoleSocket, o.PIDFDSocket
	p.SubCgroupPaths = o.SubCgroups
	if o.Confine, err = c.confinement(o.Confine); err == nil {
		err = c.checkWrapped(o.Confine)
	}
	if err != nil {
		return nil, fmt.Errorf("starting a process in container %s: %w", c.id, err)
	}
	files, err := c.wrap(p, o.Confine)
	if err != nil {
		return nil, fmt.Errorf("starting a process in container %s: %w", c.id, err)
	}
	defer closeFiles(files)
	if err := c.lc.Start(p); err != nil {
		return nil, fmt.Errorf("starting a process in container %s: %w", c.id, err)
	}
	out := &Process{p: p}
	if out.pid, err = p.Pid(); err != nil {
		return nil, err
	}
	if err := writePIDFile(o.PIDFile, out.pid); err != nil {
		_ = out.Signal(unix.SIGKILL)
		_, _ = out.Wait()
		return nil, err
	}
	return out, nil
}
