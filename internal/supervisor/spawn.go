package supervisor

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/channel"
)

// spawn gives a client a guest, with the client's end of its channel. On error nothing of
// the guest is left. It calls slow before what takes longer than to wake somebody.
func (s *Supervisor) spawn(c *client, r control.Request, slow func()) (_ *guest, outside *os.File, err error) {
	leave, err := s.enterSpawn(c)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	s.warmth.extend()

	// policy: what the client asks for
	want, err := s.policies.resolve(r, slow)
	if err != nil {
		return nil, nil, err
	}
	if err := s.room(c, r.Name); err != nil {
		return nil, nil, err
	}
	if r.Rootfs != "" || len(want.policy.FS()) > 0 {
		slow()
	}
	root, err := s.rootfs(c.peer, r.Rootfs)
	if err != nil {
		return nil, nil, err
	}

	// view: the host's files, opened as the client
	opened, err := view.Open(want.policy, c.peer.identity(), s.plan)
	if err != nil {
		return nil, nil, err
	}
	defer opened.Close()

	// blank: a guest whose agent waits to be told
	g, err := s.pool.take(kind{root, want.blank, want.blankDigest, want.reaches}, c.peer, len(opened.Shown) > 0, slow)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.forget(g)
			err = errors.Join(err, g.discard())
		}
	}()

	// and now it becomes the client's
	if err = s.enter(g, c, r); err != nil {
		return nil, nil, err
	}
	if err = g.specialise(want, opened); err != nil {
		return nil, nil, err
	}
	return g, g.channel, s.adopt(g)
}

// room says whether the client may have one more guest, of this name.
func (s *Supervisor) room(c *client, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked(c, name)
}

func (s *Supervisor) roomLocked(c *client, name string) error {
	same := 0
	for _, other := range s.guests {
		if other.client == c && other.name == name && !other.hasEnded() {
			return fmt.Errorf("a guest named %q is already running: close it or choose another name", name)
		}
		if other.client.peer.uid == c.peer.uid {
			same++
		}
	}
	if same >= s.opts.MaxGuests {
		return fmt.Errorf("%w: %v already has %d guests, the most allowed (--max-guests): close one first", errUnavailable, c.peer, same)
	}
	return nil
}

// enter makes a blank the client's: it is in the table from now on.
func (s *Supervisor) enter(g *guest, c *client, r control.Request) error {
	g.mu.Lock()
	g.name, g.started = r.Name, time.Now()
	g.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(c, r.Name); err != nil {
		return err
	}
	g.client, g.importsLimit = c, importsLimit(r)
	s.guests[g.id] = g
	return nil
}

// adopt makes a guest visible to its client. It fails when the client or the supervisor went
// meanwhile.
func (s *Supervisor) adopt(g *guest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || g.client.gone() {
		return fmt.Errorf("%w: the connection ended while the guest was being made", errUnavailable)
	}
	g.running = true
	return nil
}

// specialise puts a policy into force in a guest that has done nothing yet: the same changes
// as those of a reload, and those that only such a guest can take. After an error the guest
// is of no use.
func (g *guest) specialise(want understood, opened view.Opened) error {
	p := want.policy
	g.reloading.Lock()
	defer g.reloading.Unlock()
	r := &reloading{g: g, old: g.currentPolicy(), next: p, view: opened, layer: g.layer}
	defer func() {
		for _, end := range r.end {
			end()
		}
	}()
	defer g.use()()
	for _, part := range []struct {
		name   string
		change func() error
	}{
		// First: the agent takes it in meanwhile, if it has to. It runs nothing before it is asked to.
		{"agent", func() error { return g.configure(want.config) }},
		{"limits", r.limits}, {"files", r.fresh}, {"endpoints", func() error { return g.attendant.Begin(p) }},
	} {
		if err := part.change(); err != nil {
			return fmt.Errorf("giving the guest its %s: %w", part.name, err)
		}
	}
	g.mu.Lock()
	g.policy, g.digest, g.view = p, want.digest, opened.Notes
	g.mu.Unlock()
	g.shown, g.hosts = opened.Shown, r.hosts
	return nil
}

// configure tells the agent what it has to know of a policy, unless it knows that already: then
// it need not wake up.
func (g *guest) configure(config string) error {
	if config == g.told {
		return nil
	}
	g.told = config
	return channel.NewWriter(g.channel).Write(channel.Frame{Type: channel.Config, Payload: []byte(config)})
}
