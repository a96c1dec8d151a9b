package psi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/psi-runtime/psi/internal/control"
)

// ErrSandbox is what every error of this package is.
var ErrSandbox = errors.New("sandbox error")

// SandboxError says what is wrong with a sandbox.
type SandboxError struct {
	Sandbox string // its name; "" if there is none
	// Cause says why a sandbox is no longer alive: exit, signal, oom, cpu, wall, closed,
	// supervisor (the supervisor, or the engine's command, ended), broken (the guest broke
	// the rules of its channel); "" for errors that are not a death.
	Cause    string
	Text     string
	Limit    float64 // that was passed: bytes for oom, milliseconds for cpu and wall
	Observed float64 // in the same unit
}

func (e *SandboxError) Error() string { return e.Text }

// Is makes errors.Is(err, ErrSandbox) true.
func (e *SandboxError) Is(target error) bool { return target == ErrSandbox }

// PolicyError is a policy that cannot be accepted or held; the text names the key, the
// value and the way out.
type PolicyError struct{ SandboxError }

// Unwrap gives the SandboxError.
func (e *PolicyError) Unwrap() error { return &e.SandboxError }

// PolicyAuthError is a policy that may not be changed by whoever asked: another user's
// sandbox, or a token that is missing or wrong.
type PolicyAuthError struct{ SandboxError }

// Unwrap gives the SandboxError.
func (e *PolicyAuthError) Unwrap() error { return &e.SandboxError }

// MemoryExceeded says that the guest used more memory than its policy allows, and was killed.
type MemoryExceeded struct{ SandboxError }

// Unwrap gives the SandboxError.
func (e *MemoryExceeded) Unwrap() error { return &e.SandboxError }

// CPUExceeded says that the guest used more cpu time than its policy allows, and was killed.
type CPUExceeded struct{ SandboxError }

// Unwrap gives the SandboxError.
func (e *CPUExceeded) Unwrap() error { return &e.SandboxError }

// TimeoutError says that the context of a wait ended first.
type TimeoutError struct {
	SandboxError
	Reason error // the context's
}

// Unwrap gives the SandboxError and the context's error.
func (e *TimeoutError) Unwrap() []error { return []error{&e.SandboxError, e.Reason} }

// GuestError is an exception that the guest's code did not catch. All text in it was
// written by the guest; control characters are escaped.
type GuestError struct {
	SandboxError
	Type      string // "ValueError", "json.decoder.JSONDecodeError"
	Message   string // str() of the exception
	Traceback string // as Python prints it
	Args      []any  // as values of package channel; nil if they could not cross
}

// Unwrap gives the SandboxError.
func (e *GuestError) Unwrap() error { return &e.SandboxError }

// refusal makes an error of what a supervisor answered.
func refusal(sandbox, kind, text string) error {
	e := SandboxError{Sandbox: sandbox, Text: text}
	switch kind {
	case control.KindPolicy:
		return &PolicyError{e}
	case control.KindAuth:
		return &PolicyAuthError{e}
	case control.KindTimeout:
		return &TimeoutError{e, context.DeadlineExceeded}
	}
	return &e
}

// death makes the error of a sandbox that has ended: how its supervisor says that it
// ended, if it says so, or which rule of the channel it broke.
func death(name string, exited *control.Exit, fault string) error {
	who := fmt.Sprintf("sandbox %q ", name)
	e := SandboxError{Sandbox: name, Cause: "closed", Text: who + "is closed"}
	if exited != nil {
		e.Cause = exited.Cause
		if exited.Limit != nil && exited.Observed != nil {
			e.Limit, e.Observed = *exited.Limit, *exited.Observed
		}
	}
	switch {
	case e.Cause == control.CauseOOM:
		e.Text = who + fmt.Sprintf("was killed: it used more than %g MiB of memory (policy key mem)", e.Limit/(1<<20))
		return &MemoryExceeded{e}
	case e.Cause == control.CauseCPU:
		e.Text = who + fmt.Sprintf("was killed: it used more than %g ms of cpu time (policy key cpu_ms)", e.Limit)
		return &CPUExceeded{e}
	case fault != "":
		e.Cause, e.Text = "broken", who+"was killed: "+printable(fault)
	case e.Cause == control.CauseWall:
		e.Text = who + fmt.Sprintf("was killed: it lived longer than %g ms (policy key wall_ms)", e.Limit)
	case e.Cause == control.CauseSupervisor:
		e.Text = who + "ended with its supervisor: " + printable(exited.Message)
	case e.Cause == control.CauseExit && exited.Code != nil:
		e.Text = who + fmt.Sprintf("has ended by itself with exit code %d", *exited.Code) + because(exited.Message)
	case e.Cause == control.CauseSignal && exited.Signal != nil:
		e.Text = who + fmt.Sprintf("was killed by signal %d", *exited.Signal) + because(exited.Message)
	}
	return &e
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + printable(text)
}

// printable is text of a guest, safe to show: control characters become escapes.
func printable(text string) string {
	var out strings.Builder
	for _, c := range strings.ToValidUTF8(text, "\uFFFD") {
		if c == '\n' || c == '\t' || unicode.IsPrint(c) {
			out.WriteRune(c)
		} else {
			out.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
		}
	}
	return out.String()
}
