package supervisor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// checkReload refuses what a running guest cannot be given any more.
func checkReload(old, next policy.Policy) error {
	const wayOut = "spawn a new guest for it"
	_, limited := old.Imports()
	if _, becomes := next.Imports(); becomes && !limited {
		return fmt.Errorf("%w: imports of a running guest that may import everything cannot be limited: it has done so: %s", errPolicy, wayOut)
	}
	if (old.Limits().Tmp == 0) != (next.Limits().Tmp == 0) {
		return fmt.Errorf("%w: tmp of a running guest cannot change from or to 0: %s", errPolicy, wayOut)
	}
	if len(old.UDP()) == 0 && len(next.UDP()) > 0 {
		return fmt.Errorf("%w: udp of a running guest cannot begin: its seccomp filter knows no datagrams: %s", errPolicy, wayOut)
	}
	if old.Isolation() != policy.IsolationFresh && next.Isolation() == policy.IsolationFresh {
		return fmt.Errorf("%w: a running guest cannot become fresh: %s", errPolicy, wayOut)
	}
	if !slices.Equal(old.Preload(), next.Preload()) {
		return fmt.Errorf("%w: preload of a running guest cannot change: it has begun: %s", errPolicy, wayOut)
	}
	if len(old.Expose()) == 0 && len(next.Expose()) > 0 {
		return fmt.Errorf("%w: expose of a running guest cannot begin: its seccomp filter lets it listen nowhere: %s", errPolicy, wayOut)
	}
	if attend.AsksForNames(next) && !attend.AsksForNames(old) {
		return fmt.Errorf("%w: a running guest cannot learn wildcards: its /etc/resolv.conf was written before it started: allow the names themselves, or %s", errPolicy, wayOut)
	}
	return nil
}

// importsLimit remembers the allowed_imports of a spawn: no later policy allows more. It is
// nil if there are none.
func importsLimit(r control.Request) func(policy.Policy) (policy.Policy, error) {
	if !r.ImportsLimited {
		return nil
	}
	return func(p policy.Policy) (policy.Policy, error) { return p.IntersectImports(r.AllowedImports) }
}

// dryRun says what would change: what each guest could do that it cannot, and the other
// way round.
func dryRun(parts []*reloading) (any, error) {
	type difference struct {
		Guest   string              `json:"guest"`
		Digest  string              `json:"policy_digest"`
		Permits []policy.Difference `json:"permits"`
		Forbids []policy.Difference `json:"forbids"`
	}
	all := make([]difference, 0, len(parts))
	for _, p := range parts {
		if err := checkReload(p.old, p.next); err != nil {
			return nil, fmt.Errorf("guest %s: %w", p.g.id, err)
		}
		permits, err := policy.Compare(p.old, p.next)
		forbids, err2 := policy.Compare(p.next, p.old)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("%w: comparing with the policy of guest %s: %w", errPolicy, p.g.id, err)
		}
		all = append(all, difference{p.g.id, p.next.Digest(), orEmpty(permits), orEmpty(forbids)})
	}
	return map[string]any{"changes": all}, nil
}

func orEmpty(list []policy.Difference) []policy.Difference {
	if list == nil {
		return []policy.Difference{}
	}
	return list
}
