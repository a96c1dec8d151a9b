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
	read map[control.Document]policy.Policy
}

// parse is the document's Parse.
func (c *policies) parse(d control.Document) (policy.Policy, error) {
	if d.Size() > maxKeptPolicy {
		return d.Parse()
	}
	c.mu.Lock()
	p, ok := c.read[d]
	c.mu.Unlock()
	if ok {
		return p, nil
	}
	p, err := d.Parse()
	if err != nil {
		return p, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == nil || len(c.read) >= maxPolicies {
		c.read = make(map[control.Document]policy.Policy)
	}
	c.read[d] = p
	return p, nil
}
