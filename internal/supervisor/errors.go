package supervisor

import (
	"errors"

	"github.com/psi-runtime/psi/pkg/policy"
)

// The kinds of error on the wire. A client maps each to one exception.
const (
	kindPolicy      = "policy"      // the policy is wrong: change it
	kindSandbox     = "sandbox"     // this guest cannot be had, or is not there
	kindProtocol    = "protocol"    // the client does not speak the protocol
	kindUnavailable = "unavailable" // not now, or not on this machine
)

var (
	errProtocol    = errors.New("control protocol")
	errUnavailable = errors.New("supervisor unavailable")
	errPolicy      = errors.New("policy")
)

// errorKind says which of the kinds an error is on the wire.
func errorKind(err error) string {
	var wrong *policy.Error
	switch {
	case errors.As(err, &wrong), errors.Is(err, errPolicy):
		return kindPolicy
	case errors.Is(err, errProtocol):
		return kindProtocol
	case errors.Is(err, errUnavailable):
		return kindUnavailable
	}
	return kindSandbox
}
