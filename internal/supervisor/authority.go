package supervisor

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/internal/control"
)

// Who may change what. A guest belongs to the connection that spawned it. Other
// connections of the same uid may manage it; nobody else sees that it is there. Root may
// also reload it, whoever's it is. A client
// can protect its guests with a token: then whoever reloads one of them needs the token
// too, root included, so that code that got hold of a connection cannot widen a policy.

// minToken is the shortest token, in bytes: 16 random ones cannot be guessed.
const minToken = 16

// mayReload finds a guest that runs and whose policy the client may change, but for its
// token.
func (s *Supervisor) mayReload(c *client, id string) (*guest, error) {
	g, err := s.find(c, id)
	if err == nil || !c.peer.root() {
		return g, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.guests[id]; g != nil && g.running {
		return g, nil
	}
	return nil, err
}

// protect sets the token of this connection's guests, once.
func (c *client) protect(token string) error {
	if len(token) < minToken {
		return fmt.Errorf("%w: a token of %d bytes: at least %d random ones are needed", errPolicy, len(token), minToken)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.Sum256([]byte(token))
	if c.token != nil && subtle.ConstantTimeCompare(c.token, sum[:]) != 1 {
		return fmt.Errorf("%w: these guests are protected by another token already", errAuth)
	}
	c.token = sum[:]
	return nil
}

// accepts says whether a token opens this connection's guests.
func (c *client) accepts(token string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.Sum256([]byte(token))
	switch {
	case c.token == nil && token == "":
		return nil
	case c.token == nil:
		return fmt.Errorf("%w: a token was given, and the guest's client has set none: leave it out, or protect the guests first", errAuth)
	case token == "":
		return fmt.Errorf("%w: the guest is protected by a token: give it", errAuth)
	case subtle.ConstantTimeCompare(c.token, sum[:]) != 1:
		return fmt.Errorf("%w: the token is not the one that protects the guest", errAuth)
	}
	return nil
}

// authorised finds the guests of a reload, without repetition and in the order in which
// they are locked. Somebody else's guest gets the same answer as none at all.
func (s *Supervisor) authorised(c *client, r control.Request) ([]*guest, error) {
	ids := r.Guests
	if r.Guest != "" {
		ids = append(slices.Clone(ids), r.Guest)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: reload takes guest or guests", errProtocol)
	}
	slices.Sort(ids)
	var guests []*guest
	for _, id := range slices.Compact(ids) {
		g, err := s.mayReload(c, id)
		if err != nil {
			if c.remembers(id) {
				return nil, fmt.Errorf("guest %s has ended", id)
			}
			return nil, fmt.Errorf("%w: %v may change no guest %q", errAuth, c.peer, clip(strings.ToValidUTF8(id, ""), 64))
		}
		if err := g.client.accepts(r.Token); err != nil {
			s.opts.Log.WithError(err).WithField("guest", id).WithField("uid", c.peer.uid).Warn("a reload was refused")
			return nil, fmt.Errorf("guest %s: %w", id, err)
		}
		guests = append(guests, g)
	}
	return guests, nil
}
