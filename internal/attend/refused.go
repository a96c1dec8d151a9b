package attend

import (
	"sync"
	"time"

	"github.com/psi-runtime/psi/internal/netproxy"
	"github.com/psi-runtime/psi/pkg/policy"
)

// The budget of a guest's refusals by the proxy is that of its denials in the kernel.
const (
	refusalBurst    = 50
	refusalInterval = 10 * time.Millisecond
)

// Rebound is the reason of a DENIED event about a name that leads where no name may.
const Rebound = string(netproxy.Rebound)

// refusals counts what the proxy refuses beyond the budget.
type refusals struct {
	mu         sync.Mutex
	full       time.Time // when the whole burst is there again
	suppressed uint64    // since the last one that was told
}

// take says whether one more may be told, and how many were not before it.
func (r *refusals) take(now time.Time) (before uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full.Before(now) {
		r.full = now
	}
	if r.full.Sub(now) > (refusalBurst-1)*refusalInterval {
		r.suppressed++
		return 0, false
	}
	r.full = r.full.Add(refusalInterval)
	before, r.suppressed = r.suppressed, 0
	return before, true
}

// tellRefused makes a DENIED event of what only the proxy knows to be forbidden: a name
// that leads where no name may, and one that is denied below a wildcard. What the
// programs deny does not reach the proxy; what cannot be reached is no denial.
func (a *Attendant) tellRefused(r netproxy.Refusal) {
	if r.Reason != netproxy.Rebound && r.Reason != netproxy.NotAllowed {
		return
	}
	now := time.Now()
	before, ok := a.refusals.take(now)
	if !ok {
		return
	}
	details := map[string]any{
		"kind": "net", "operation": "connect", "address": r.Dest.String(), "protocol": r.Protocol.String(),
		"reason": string(r.Reason), "errno": "ECONNRESET", "rule": nil, "suppressed": before,
	}
	if r.Name != "" {
		details["name"] = r.Name
		if rule, denies := denyingRule(*a.policy.Load(), r.Protocol.String(), r.Dest.Port(), func(e policy.Endpoint) bool { return e.CoversName(r.Name) }); denies {
			details["rule"] = rule
		}
	}
	a.tell(Event{Time: now, Type: Denied, Details: details})
}
