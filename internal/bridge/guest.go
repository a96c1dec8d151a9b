package bridge

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// guest is one run of the command.
type guest struct {
	b        *Bridge
	id, name string
	cidfile  string         // where a known engine writes the container's id
	policy   *policy.Policy // nil: unknown here
	started  time.Time
	cmd      *exec.Cmd
	stderr   tail

	container string        // the engine's id of it; "": the engine is not known
	process   *process      // its first process; nil: the engine is not known, or never got so far
	found     chan struct{} // closed when the two above are settled
	left      chan struct{} // closed when the command has ended
	ended     chan struct{} // closed when the command and the container have

	mu      sync.Mutex // guards the fields below
	asked   string     // why the bridge ended it: control.CauseClosed, CauseSupervisor or ""
	message string     // goes with asked
}

// ask notes why the bridge is about to end the guest; the first reason counts.
func (g *guest) ask(cause, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked == "" {
		g.asked, g.message = cause, message
	}
}

// wait reaps the command; when that has ended, so must the container.
func (g *guest) wait(stderr *os.File) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		g.stderr.drain(stderr)
	}()
	_ = g.cmd.Wait() // ProcessState says it
	// What the command has started may hold its stderr open for ever.
	_ = stderr.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-drained
	stderr.Close()
	close(g.left)
	g.settle()
}

// settle waits for the end of both, and makes sure of the container's.
func (g *guest) settle() {
	defer close(g.ended)
	defer func() { _ = os.Remove(g.cidfile) }()
	<-g.left
	<-g.found
	_ = syscall.Kill(-g.cmd.Process.Pid, unix.SIGKILL) // what it has left in its group
	if g.process == nil {
		if data, err := os.ReadFile(g.cidfile); err == nil && len(data) > 0 && g.b.command.known() {
			g.b.remove(string(data))
		}
		return
	}
	select {
	case <-g.process.gone:
		return
	case <-time.After(200 * time.Millisecond): // conmon says it to podman before the kernel says it here
	}
	// The engine's command is gone (killed, or it lost its stdout), the container is not.
	g.ask(control.CauseSupervisor, fmt.Sprintf("%s ended before its container: %v", g.b.command.engine(), g.cmd.ProcessState))
	_ = g.process.signal(unix.SIGKILL)
	g.b.remove(g.container)
	<-g.process.gone
}

// close asks the guest to end, makes it end after the timeout, and returns when it has.
func (g *guest) close(timeout time.Duration) error {
	g.ask(control.CauseClosed, "")
	if g.signal(unix.SIGTERM) == nil && g.endsWithin(timeout) {
		return nil
	}
	return g.kill()
}

// kill ends the guest at once and returns when it has ended. It may be called before the
// guest was found, or announced.
func (g *guest) kill() error {
	err := g.signal(unix.SIGKILL)
	if g.process != nil {
		// The engine's command follows its container, and tidies up after it.
		select {
		case <-g.left:
		case <-time.After(endPatience):
		}
	}
	_ = syscall.Kill(-g.cmd.Process.Pid, unix.SIGKILL)
	if g.endsWithin(endPatience) {
		return nil
	}
	return errors.Join(fmt.Errorf("killing guest %s: it has not ended after %v", g.id, endPatience), err)
}

// signal signals the container's first process, or the command where that is not known.
func (g *guest) signal(s syscall.Signal) error {
	if g.process != nil {
		return g.process.signal(s)
	}
	return g.cmd.Process.Signal(s)
}

func (g *guest) hasEnded() bool { return g.endsWithin(0) }

func (g *guest) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-g.ended:
		return true
	case <-timer.C:
	}
	select {
	case <-g.ended:
		return true
	default:
		return false
	}
}

// stats are the guest's figures.
func (g *guest) stats() (any, error) {
	if g.hasEnded() {
		return nil, fmt.Errorf("guest %s has ended", g.id)
	}
	if g.process == nil {
		return nil, fmt.Errorf("what a guest uses is not known when %s runs it: ask that engine (podman run and docker run can be asked)", g.b.command.engine())
	}
	f, err := g.process.groups.read()
	if err != nil {
		return nil, fmt.Errorf("reading the figures of guest %s: %w", g.id, err)
	}
	return map[string]any{
		"cpu_ms": float64(f.cpu) / float64(time.Millisecond), "mem_bytes": f.mem, "pids": f.pids,
	}, nil
}
