package attend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/psi-runtime/psi/internal/netproxy"
)

// ErrNotExposed means that the policy in force does not expose a port.
var ErrNotExposed = errors.New("its policy does not expose it")

// Why a guest takes no connection at a port that its policy exposes.
var (
	ErrNotListening = netproxy.ErrNotListening
	ErrNotAccepting = netproxy.ErrNotAccepting
)

// ConnectInside is [Attendant.Connect] for a guest that another process attends: the caller
// has looked at its policy, and opened its network namespace.
func ConnectInside(ctx context.Context, netns *os.File, port uint16) (*os.File, error) {
	return netproxy.ConnectInside(ctx, netns, port)
}

// Connect returns a socket that is connected to a port of the guest's, if the policy
// exposes it: see [netproxy.Proxy.Connect].
func (a *Attendant) Connect(ctx context.Context, port uint16) (*os.File, error) {
	switch exposed := a.policy.Load().Expose(); {
	case a.net.proxy == nil:
		return nil, fmt.Errorf("connecting to port %d of the guest: the network of its container is its engine's: have the engine publish the port", port)
	case !slices.Contains(exposed, port):
		return nil, fmt.Errorf("connecting to port %d of the guest: %w, %v: expose: [%d] would", port, ErrNotExposed, exposed, port)
	}
	return a.net.proxy.Connect(ctx, port)
}
