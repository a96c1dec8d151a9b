package supervisor

import (
	"sync"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Bounds of what is kept: documents are small as a rule, and few.
const (
	maxPolicies   = 256
	maxKeptPolicy = 4 << 10 // bytes of a document
)

// policies remembers what documents meant: reading one again takes a quarter of a spawn.
type policies struct {
	mu   sync.Mutex
	read map[string]policy.Policy
}

// resolve is control's Resolve.
func (c *policies) resolve(r control.Request) (policy.Policy, error) {
	if r.Policy == nil || r.PolicyText != nil || r.PolicyName != nil || r.ImportsLimited || len(r.Policy) > maxKeptPolicy {
		return r.Resolve()
	}
	c.mu.Lock()
	p, ok := c.read[string(r.Policy)]
	c.mu.Unlock()
	if ok {
		return p, nil
	}
	p, err := r.Resolve()
	if err != nil {
		return p, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == nil || len(c.read) >= maxPolicies {
		c.read = make(map[string]policy.Policy)
	}
	c.read[string(r.Policy)] = p
	return p, nil
}
