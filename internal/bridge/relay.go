package bridge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/channel"
	"github.com/psi-runtime/psi/pkg/policy"
)

// RelayOptions say how a guest is run between two streams.
type RelayOptions struct {
	Options
	Policy *policy.Policy // nil: the command's container has the one that it was made with
	Grace  time.Duration  // between SIGTERM and SIGKILL
	Stdin  io.Reader      // frames for the guest; its end closes the guest
	Stdout io.Writer      // the guest's frames, each checked
}

// Relay runs the command once and carries frames between it and the two streams, until the
// guest ends, ctx ends, or Stdin does and the guest has not ended within Grace. The result is the command's exit code.
//
//	Stdin ──bytes──► guest      the client is trusted: nothing is looked at
//	Stdout ◄──frames── guest    a guest is not: a frame that breaks a rule ends it
func Relay(ctx context.Context, o RelayOptions) (code int, err error) {
	b, err := New(o.Options)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if o.Policy != nil && (!b.command.known() || b.command.engine() != "podman") {
		return 0, fmt.Errorf("%w: %q cannot be given a policy, only podman run can", control.ErrPolicy, b.command)
	}
	g, outside, err := b.start(ctx, ask{name: "relay", policy: o.Policy})
	if err != nil {
		return 0, err
	}
	conn, err := net.FileConn(outside)
	outside.Close()
	if err != nil {
		return 0, errors.Join(fmt.Errorf("opening the channel: %w", err), g.kill())
	}
	defer conn.Close()

	gone := make(chan struct{}) // the client has
	go func() {
		defer close(gone)
		_, _ = io.Copy(conn, o.Stdin)
		_ = conn.(*net.UnixConn).CloseWrite() // the agent does what it was asked, and ends
	}()
	broken := make(chan error, 1)
	go func() { broken <- carry(o.Stdout, conn, g.messageLimit()) }()

	select {
	case <-ctx.Done():
	case err = <-broken: // the guest's stdout has ended: soon the guest will have
	case <-gone:
		select {
		case <-ctx.Done():
		case err = <-broken:
		case <-time.After(o.Grace):
		}
	}
	if err == nil && ctx.Err() == nil {
		g.endsWithin(o.Grace)
	}
	if err != nil {
		g.ask(control.CauseSupervisor, err.Error())
		return 0, errors.Join(err, g.kill())
	}
	if !g.hasEnded() {
		err = g.close(o.Grace)
	}
	return g.report(err)
}

// report is the exit code of a guest that has ended, with the reason if it did not end by itself.
func (g *guest) report(err error) (int, error) {
	if err != nil {
		return 0, err
	}
	switch exit, _ := g.exit(nil); exit.Cause {
	case control.CauseClosed:
		return 0, nil
	case control.CauseExit, control.CauseSignal:
		code := g.cmd.ProcessState.ExitCode()
		if code != 0 && exit.Message != "" {
			g.b.opts.Log.Warnf("%s: %s", g.b.command.engine(), exit.Message)
		}
		return code, nil
	case control.CauseSupervisor:
		return 0, errors.New(exit.Message)
	default:
		return 0, fmt.Errorf("the guest was killed: it passed its policy's limit (%s): limit %.0f, observed %.0f", exit.Cause, *exit.Limit, *exit.Observed)
	}
}

// carry copies frames until the guest's stream ends, or breaks a rule.
func carry(to io.Writer, from io.Reader, message int64) error {
	buffered := bufio.NewWriterSize(to, 64<<10)
	in := bufio.NewReaderSize(from, 64<<10)
	reader, writer := channel.NewReader(in, channel.FromGuest, message), channel.NewWriter(buffered)
	for {
		frame, err := reader.Read()
		switch {
		case errors.Is(err, channel.ErrProtocol):
			return fmt.Errorf("the guest broke the rules of its channel: %w", err)
		case err != nil:
			return nil // it has ended, perhaps inside a frame
		}
		if err := writer.Write(frame); err != nil {
			return nil // the client has gone: its stdin says so as well
		}
		if in.Buffered() == 0 {
			if err := buffered.Flush(); err != nil {
				return nil
			}
		}
	}
}

// messageLimit is how large a value of the guest may be, in bytes.
func (g *guest) messageLimit() int64 {
	if g.policy == nil {
		return policy.Defaults().Limits().Message
	}
	return g.policy.Limits().Message
}
