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

// ErrNotAccepting means that the guest has taken no connection in time.
var ErrNotAccepting = netproxy.ErrNotAccepting

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
