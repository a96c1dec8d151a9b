package supervisor

import "github.com/psi-runtime/psi/internal/control"

// The kinds of refusal that a client is told apart; see control.Kind.
var (
	errProtocol    = control.ErrProtocol
	errUnavailable = control.ErrUnavailable
	errPolicy      = control.ErrPolicy
	errAuth        = control.ErrAuth
)
