package psi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/psi-runtime/psi/pkg/channel"
)

// Exec runs source code in the guest. It is queued, and Exec returns at once (or when the
// guest, which has too much to read, has read some); an exception that the code does not
// catch is the error of the next Recv in its turn.
func (sb *Sandbox) Exec(ctx context.Context, source string) error {
	_, err := sb.request(ctx, channel.Exec, []byte(source), false)
	return err
}

// ExecWait runs source code and waits until it has run; its output goes to the writers,
// which may be nil. When ctx ends first the code is interrupted. An exception of the code
// is the error of the next Recv, as with Exec.
func (sb *Sandbox) ExecWait(ctx context.Context, source string, stdout, stderr io.Writer) error {
	c, err := sb.request(ctx, channel.Exec, []byte(source), true)
	if err != nil {
		return err
	}
	defer c.abandon()
	writers := map[channel.Type]io.Writer{channel.Stdout: discardOutput(stdout), channel.Stderr: discardOutput(stderr)}
	show := func(f channel.Frame) error {
		if _, err := writers[f.Type].Write(f.Payload); err != nil {
			sb.session.abandon(c)
			return &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("writing the output of sandbox %q: %v", sb.name, err)}
		}
		return nil
	}
	for {
		select {
		case f := <-c.output:
			if err := show(f); err != nil {
				return err
			}
		case <-c.reply:
			for len(c.output) > 0 { // the reader filed it before the reply
				if err := show(<-c.output); err != nil {
					return err
				}
			}
			return nil
		case <-ctx.Done():
			sb.session.abandon(c)
			return expired(ctx, sb.name, "exec has not ended and was interrupted")
		case <-sb.session.ended:
			if len(c.reply) > 0 || len(c.output) > 0 {
				continue
			}
			return sb.death()
		}
	}
}

// Kw are the keyword arguments of a Call: its last argument.
type Kw map[string]any

// Call calls the guest's function with this dotted name, which is looked up in the
// namespace of Exec, then as a module's attribute, and returns what it returns; what it
// raises is a *GuestError. Posts that arrive meanwhile are kept for Recv, up to 1024 or
// 16 MiB: a guest that posts more waits until another goroutine receives. Requests run in
// order, so this waits for earlier ones as well. When ctx ends first the call is interrupted.
func (sb *Sandbox) Call(ctx context.Context, function string, args ...any) (any, error) {
	keywords := map[string]any{}
	if n := len(args); n > 0 {
		if kw, ok := args[n-1].(Kw); ok {
			keywords, args = kw, args[:n-1]
		}
	}
	if args == nil {
		args = []any{}
	}
	payload, err := channel.Encode([]any{function, args, keywords}, int(sb.message.Load()))
	if err != nil {
		return nil, &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("the arguments of %q cannot be sent: %v", function, err)}
	}
	c, err := sb.request(ctx, channel.Call, payload, false)
	if err != nil {
		return nil, err
	}
	select {
	case f := <-c.reply:
		return sb.value(f)
	case <-ctx.Done():
		sb.session.abandon(c)
		return nil, expired(ctx, sb.name, fmt.Sprintf("call of %q has not returned and was interrupted", function))
	case <-sb.session.ended:
		select {
		case f := <-c.reply:
			return sb.value(f)
		default:
			return nil, sb.death()
		}
	}
}

// Recv is the next value that the guest posted, or, as a *GuestError, the next exception
// of an Exec in its turn.
func (sb *Sandbox) Recv(ctx context.Context) (any, error) {
	f, err := sb.session.receive(ctx)
	switch {
	case errors.Is(err, errEnded):
		return nil, sb.death()
	case err != nil:
		return nil, expired(ctx, sb.name, "nothing to receive")
	}
	return sb.value(f)
}

// Post sends a value, of the types that package channel lists, to the guest, whose recv()
// returns it. It waits only while too much waits for the guest already.
func (sb *Sandbox) Post(ctx context.Context, value any) error {
	payload, err := channel.Encode(value, int(sb.message.Load()))
	if err != nil {
		return &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("the value to post cannot be sent: %v", err)}
	}
	return sb.put(ctx, channel.Frame{Type: channel.HostPost, Payload: payload})
}

// Interrupt raises KeyboardInterrupt in the code that the guest runs now; a request that
// has not begun is cancelled.
func (sb *Sandbox) Interrupt(ctx context.Context) error {
	if err := sb.Err(); err != nil {
		return err
	}
	return sb.sent(ctx, sb.session.interrupt(ctx, 0))
}

func (sb *Sandbox) request(ctx context.Context, kind channel.Type, payload []byte, listen bool) (*call, error) {
	if err := sb.Err(); err != nil {
		return nil, err
	}
	if limit := sb.message.Load() + channel.ValueSlack; int64(len(payload)) > limit {
		return nil, &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("a request of %d bytes; the limit is %d (policy key message)", len(payload), limit)}
	}
	if kind == channel.Exec && !utf8.Valid(payload) {
		return nil, &SandboxError{Sandbox: sb.name, Text: "exec: the source is not UTF-8"}
	}
	c, err := sb.session.request(ctx, kind, payload, listen)
	return c, sb.sent(ctx, err)
}

func (sb *Sandbox) put(ctx context.Context, f channel.Frame) error {
	if err := sb.Err(); err != nil {
		return err
	}
	return sb.sent(ctx, sb.session.out.put(ctx, f))
}

// sent turns the session's error of sending into one of this package.
func (sb *Sandbox) sent(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errEnded):
		return sb.death()
	}
	return expired(ctx, sb.name, "the guest does not read what it is sent")
}

// waitReady waits until the guest's interpreter runs.
func (sb *Sandbox) waitReady(ctx context.Context) error {
	select {
	case <-sb.session.ready:
		return nil
	case <-sb.session.ended:
		return sb.death()
	case <-ctx.Done():
		return expired(ctx, sb.name, "the guest is not ready")
	}
}

// value decodes what a guest sent.
func (sb *Sandbox) value(f channel.Frame) (any, error) {
	if f.Type == channel.Error {
		return nil, sb.exception(f)
	}
	sb.mu.Lock()
	classes := sb.classes
	sb.mu.Unlock()
	value, err := channel.Decode(f.Payload, channel.DecodeOptions{
		Limits: valueLimits(sb.budget.Load()), Classes: func(name string) bool { return classes[name] },
	})
	switch {
	case errors.Is(err, channel.ErrClass):
		return nil, &SandboxError{Sandbox: sb.name, Text: printable(fmt.Sprintf("sandbox %q sent %v: Accept opts in to a class", sb.name, err))}
	case err != nil:
		sb.session.spoil("it sent a value that is not allowed: " + err.Error())
		return nil, sb.death()
	}
	return value, nil
}

// exception makes the error of what a guest reported.
func (sb *Sandbox) exception(f channel.Frame) error {
	found, err := channel.ParseError(f.Payload)
	if err != nil {
		sb.session.spoil("it sent a malformed report of an exception: " + err.Error())
		return sb.death()
	}
	e := &GuestError{Type: found.QualName, Message: printable(found.Message), Traceback: printable(found.Traceback), Args: found.Args}
	if found.Module != "builtins" && found.Module != "__main__" {
		e.Type = found.Module + "." + found.QualName
	}
	e.Type = printable(e.Type)
	e.Sandbox, e.Text = sb.name, e.Type
	if e.Message != "" {
		e.Text += ": " + e.Message
	}
	return e
}
