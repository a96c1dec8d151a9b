package attend

import (
	"fmt"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
)

// throttles is the guest's place among those that are told of being held back.
type throttles struct {
	all   *enforce.Throttles // nil where no cgroup holds the guest's cpu limit
	owned bool               // all is of this guest alone: closed with it
	guest uint64
}

// watchThrottling makes an event of the beginning of each stretch of throttling.
func (a *Attendant) watchThrottling() error {
	group := a.c.CPUGroup()
	if a.opts.OnEvent == nil || group == "" {
		return nil
	}
	periods, err := a.c.Throttled()
	if err != nil {
		return fmt.Errorf("watching the guest's throttling: %w", err)
	}
	t := throttles{all: a.opts.Throttles, owned: a.opts.Throttles == nil}
	if t.owned {
		t.all = enforce.NewThrottles()
	}
	if t.guest, err = t.all.Watch(group, periods, a.tellThrottled); err != nil {
		return err
	}
	a.throttles = t
	return nil
}

func (a *Attendant) tellThrottled(began time.Time, periods uint64) {
	a.tell(Event{Time: began, Type: CPUThrottle, Details: map[string]any{
		"reason": "quota", "limit": a.policy.Load().Limits().CPU, "observed": periods,
	}})
}

// enforced says what is not told.
func (t *throttles) enforced() []Enforcement {
	if t.all == nil || t.all.Err() == nil {
		return nil
	}
	return []Enforcement{{"cpu", fmt.Sprintf("cgroup; CPU_THROTTLE is not told: %v", t.all.Err())}}
}

// closeThrottles has the guest told what it has not been told yet.
func (a *Attendant) closeThrottles() error {
	t := &a.throttles
	if t.all == nil {
		return nil
	}
	t.all.Forget(t.guest)
	if t.owned {
		return t.all.Close()
	}
	return nil
}
