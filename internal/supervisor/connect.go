package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/control"
)

// connect answers a request for a connection to a port that a guest's policy exposes.
// The socket goes with the reply and no copy of it stays here: what the client and the
// guest say to each other is theirs.
func (c *client) connect(r control.Request) {
	file, err := c.s.connect(c, r)
	if err != nil {
		c.refuse(r.ID, err, true)
		return
	}
	c.answer(r.ID, map[string]bool{"connected": true}, file)
}

func (s *Supervisor) connect(c *client, r control.Request) (*os.File, error) {
	g, err := s.find(c, r.Guest)
	if err != nil {
		return nil, err
	}
	defer g.use()()
	if g.hasEnded() {
		return nil, fmt.Errorf("guest %s has ended", g.id)
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	file, err := g.attendant.Connect(ctx, r.Port)
	switch {
	case errors.Is(err, attend.ErrNotExposed):
		return nil, fmt.Errorf("%w: %w", errPolicy, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: %w within %v at port %d of the guest", control.ErrTimeout, attend.ErrNotAccepting, r.Timeout, r.Port)
	}
	return file, err
}
