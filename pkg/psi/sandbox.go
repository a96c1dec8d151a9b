package psi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/channel"
)

// Grace is the usual time between SIGTERM and SIGKILL in Close.
const Grace = 200 * time.Millisecond

// exitNotice is how long after the end of a channel its reason may come.
const exitNotice = time.Second

// newsPatience is how long a supervisor may take to say whether there is news.
const newsPatience = 10 * time.Second

// Sandbox is the handle of a running guest. When the guest has ended, every method but
// Recv of what had already arrived returns a *SandboxError with the cause, or
// *MemoryExceeded or *CPUExceeded if that was it. Close it: until then it holds two
// goroutines, even when the guest has ended.
type Sandbox struct {
	PolicyDigest string        // of the policy that it was spawned with
	Enforced     []Enforcement // which mechanism holds which part of it

	client   *Client
	name, id string
	message  atomic.Int64 // the policy's limit of a value, in bytes
	budget   atomic.Int64 // for decoding what the session has let in: the largest that message ever was
	session  *session
	exited   chan struct{} // closed when it has ended

	mu      sync.Mutex // guards the fields below
	exit    *control.Exit
	over    bool // exited is closed
	closed  bool
	classes map[string]bool // opted in to
}

// Name is the label that it was spawned with.
func (sb *Sandbox) Name() string { return sb.name }

// ID is what the guest is called on the host: psi-….
func (sb *Sandbox) ID() string { return sb.id }

// Done is closed when the guest has ended; Err then says why.
func (sb *Sandbox) Done() <-chan struct{} { return sb.exited }

// Err says why the guest has ended; nil while it runs.
func (sb *Sandbox) Err() error {
	select {
	case <-sb.exited:
		return sb.death()
	default:
		return nil
	}
}

// Accept opts in to classes of the guest's by name: a dataclass, named tuple or enum member
// of that name arrives as a channel.Instance.
func (sb *Sandbox) Accept(classes ...string) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	accepted := make(map[string]bool)
	for class := range sb.classes {
		accepted[class] = true
	}
	for _, class := range classes {
		accepted[class] = true
	}
	sb.classes = accepted
}

// Stats are what a guest uses.
type Stats struct {
	CPU  time.Duration // since launch
	Mem  uint64        // bytes: anonymous memory, mapped files, shared memory, now
	PIDs uint64        // processes and threads, now
}

// Stats asks what the guest uses now.
func (sb *Sandbox) Stats(ctx context.Context) (Stats, error) {
	ok, err := sb.ask(ctx, "stats", nil)
	if err != nil {
		return Stats{}, err
	}
	var figures struct {
		CPU  float64 `json:"cpu_ms"`
		Mem  uint64  `json:"mem_bytes"`
		PIDs uint64  `json:"pids"`
	}
	if err := json.Unmarshal(ok, &figures); err != nil {
		return Stats{}, &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("the supervisor's figures of sandbox %q: %v", sb.name, err)}
	}
	return Stats{time.Duration(figures.CPU * float64(time.Millisecond)), figures.Mem, figures.PIDs}, nil
}

// Stdout is the end of what the guest has printed, at most 256 KiB.
func (sb *Sandbox) Stdout() string { return sb.tail(channel.Stdout) }

// Stderr is the end of what the guest has written to its stderr, at most 256 KiB.
func (sb *Sandbox) Stderr() string { return sb.tail(channel.Stderr) }

func (sb *Sandbox) tail(stream channel.Type) string {
	sb.session.mu.Lock()
	defer sb.session.mu.Unlock()
	return strings.ToValidUTF8(string(sb.session.tails[stream-channel.Stdout]), "\uFFFD")
}

// Close asks the guest to end (SIGTERM), makes it end after the grace time, and releases
// the handle. When it returns without an error, no process of the guest runs. Closing
// again, or a guest that has ended, is fine.
func (sb *Sandbox) Close(ctx context.Context, grace time.Duration) error {
	return sb.stop(ctx, "close", map[string]any{"timeout": max(grace, 0).Seconds()})
}

// Kill ends the guest at once and releases the handle.
func (sb *Sandbox) Kill(ctx context.Context) error { return sb.stop(ctx, "kill", nil) }

func (sb *Sandbox) stop(ctx context.Context, op string, fields map[string]any) error {
	var err error
	if sb.Err() == nil {
		if _, err = sb.client.link.ask(ctx, sb.name, op, sb.about(fields)); err != nil {
			var lost *SandboxError
			if errors.As(err, &lost) && lost.Cause == control.CauseSupervisor || sb.endsWithin(exitNotice) {
				err = nil // its guests died with it; or the two crossed
			}
		}
		if isTimeout(err) {
			return err // it is being ended; Close once more waits once more
		}
	}
	sb.release()
	return err
}

// release ends the handle.
func (sb *Sandbox) release() {
	sb.mu.Lock()
	sb.closed = true
	sb.mu.Unlock()
	sb.end(nil)
	sb.session.close()
	sb.client.forget(sb)
	sb.client.mu.Lock()
	delete(sb.client.handles, sb)
	sb.client.mu.Unlock()
}

// discard kills a guest that nobody wants, without waiting.
func (sb *Sandbox) discard() {
	_, _ = sb.client.link.tell(sb.name, "kill", sb.about(nil), nil)
	sb.release()
}

// onExited is told by the supervisor, once.
func (sb *Sandbox) onExited(e control.Exit) {
	sb.end(&e)
	sb.session.hangUp()
	sb.client.forget(sb)
}

func (sb *Sandbox) end(e *control.Exit) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if !sb.over {
		sb.over, sb.exit = true, e
		close(sb.exited)
	}
}

// ask asks the supervisor about a guest that runs.
func (sb *Sandbox) ask(ctx context.Context, op string, fields map[string]any) (json.RawMessage, error) {
	if err := sb.Err(); err != nil {
		return nil, err
	}
	ok, err := sb.client.link.ask(ctx, sb.name, op, sb.about(fields))
	if err != nil && !isTimeout(err) {
		if ended := sb.Err(); ended != nil {
			return nil, ended
		}
	}
	return ok, err
}

func (sb *Sandbox) about(fields map[string]any) map[string]any {
	all := map[string]any{"guest": sb.id}
	for key, value := range fields {
		all[key] = value
	}
	return all
}

func (sb *Sandbox) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-sb.exited:
		return true
	case <-timer.C:
		return false
	}
}

// death is why the guest is no longer there; it waits a little for the supervisor to say it.
func (sb *Sandbox) death() error {
	fault := sb.session.faulted()
	if fault == "" && !sb.endsWithin(exitNotice) {
		sb.session.breakOff("it closed its end of the channel and went on running")
		fault = sb.session.faulted()
	}
	if fault != "" {
		sb.endsWithin(exitNotice)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return death(sb.name, sb.exit, fault)
}

// onReloaded is told by the supervisor before the guest is.
func (sb *Sandbox) onReloaded(message int64) {
	sb.message.Store(message)
	sb.budget.Store(max(sb.budget.Load(), message))
	sb.session.in.SetLimit(message)
}

// hear returns when everything that the supervisor had to say has been looked at: its
// replies come in order.
func (sb *Sandbox) hear() {
	ctx, cancel := context.WithTimeout(context.Background(), newsPatience)
	defer cancel()
	_, _ = sb.client.link.ask(ctx, sb.name, "find", sb.about(nil))
}

// report tells the supervisor which rule the guest broke: it tells every watcher
// (BROKER_ERROR), and kills the guest.
func (sb *Sandbox) report(fault string) {
	_, _ = sb.client.link.tell(sb.name, "report", sb.about(map[string]any{"error": fault}), nil)
}

func isTimeout(err error) bool {
	var timeout *TimeoutError
	return errors.As(err, &timeout)
}

// discardOutput stands in for a writer that was not given.
func discardOutput(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
