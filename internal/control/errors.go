package control

import (
	"errors"

	"github.com/psi-runtime/psi/pkg/policy"
)

// The kinds of error on the wire. A client maps each to one exception.
const (
	KindPolicy      = "policy"      // the policy is wrong: change it
	KindAuth        = "auth"        // the client may not change this guest's policy
	KindSandbox     = "sandbox"     // this guest cannot be had, or is not there
	KindProtocol    = "protocol"    // the client does not speak the protocol
	KindUnavailable = "unavailable" // not now, or not on this machine
	KindTimeout     = "timeout"     // the guest did not do it in the time that was given
)

// What the kinds stand for, to be wrapped; anything else is of kind "sandbox".
var (
	ErrProtocol    = errors.New("control protocol")
	ErrUnavailable = errors.New("supervisor unavailable")
	ErrPolicy      = errors.New("policy")
	ErrAuth        = errors.New("not authorised")
	ErrTimeout     = errors.New("timed out")
)

// Kind says which of the kinds an error is on the wire.
func Kind(err error) string {
	var wrong *policy.Error
	switch {
	case errors.Is(err, ErrAuth):
		return KindAuth
	case errors.As(err, &wrong), errors.Is(err, ErrPolicy):
		return KindPolicy
	case errors.Is(err, ErrProtocol):
		return KindProtocol
	case errors.Is(err, ErrTimeout):
		return KindTimeout
	case errors.Is(err, ErrUnavailable):
		return KindUnavailable
	}
	return KindSandbox
}
