package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// reload puts another policy into force in a running guest: its endpoints and those
// limits that the kernel lets change. Reloads of one guest run one after another.
func (g *guest) reload(r control.Request) error {
	next, err := r.Resolve()
	if err != nil {
		return err
	}
	g.reloading.Lock()
	defer g.reloading.Unlock()
	old := g.currentPolicy()
	if err := checkReload(old, next); err != nil {
		return err
	}
	defer g.use()()
	if g.hasEnded() {
		return fmt.Errorf("guest %s has ended", g.id)
	}
	if err := g.container.Update(next.Limits()); err != nil {
		return fmt.Errorf("reloading the limits of guest %s: %w", g.id, err)
	}
	if err := g.attendant.Update(next); err != nil {
		back := g.container.Update(old.Limits())
		return errors.Join(fmt.Errorf("reloading the endpoints of guest %s: %w", g.id, err), back)
	}
	g.mu.Lock()
	g.policy = next
	g.mu.Unlock()
	g.event(attend.Event{Time: time.Now(), Type: eventHotload, Details: map[string]any{"policy_digest": next.Digest()}})
	return nil
}

// checkReload refuses what a running guest cannot be given any more.
func checkReload(old, next policy.Policy) error {
	const wayOut = "spawn a new guest for it"
	if !slices.Equal(old.FS(), next.FS()) {
		return fmt.Errorf("%w: fs rules of a running guest cannot change: %s", errPolicy, wayOut)
	}
	oldImports, oldLimited := old.Imports()
	nextImports, nextLimited := next.Imports()
	if oldLimited != nextLimited || !slices.Equal(oldImports, nextImports) {
		return fmt.Errorf("%w: imports of a running guest cannot change: %s", errPolicy, wayOut)
	}
	a, b := old.Limits(), next.Limits()
	for _, fixed := range []struct {
		key       string
		old, next int64
	}{
		{"open_files", a.OpenFiles, b.OpenFiles}, {"tmp", a.Tmp, b.Tmp},
		{"message", a.Message, b.Message}, {"output", a.Output, b.Output},
	} {
		if fixed.old != fixed.next {
			return fmt.Errorf("%w: %s of a running guest cannot change (from %d to %d): %s", errPolicy, fixed.key, fixed.old, fixed.next, wayOut)
		}
	}
	// A name is found through the guest's /etc/hosts, which was written before it started.
	if !namesKnown(old, next) {
		return fmt.Errorf("%w: a running guest cannot learn new host names: allow the address, or %s", errPolicy, wayOut)
	}
	return nil
}

// namesKnown says whether every host name of next is one of old.
func namesKnown(old, next policy.Policy) bool {
	for _, e := range next.TCP() {
		if _, address := e.Prefix(); address {
			continue
		}
		if !slices.ContainsFunc(old.TCP(), func(o policy.Endpoint) bool { return o.Host == e.Host }) {
			return false
		}
	}
	return true
}
