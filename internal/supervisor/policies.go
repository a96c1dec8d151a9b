package supervisor

import (
	"sync"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
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
	read map[control.Document]understood
}

// understood is a policy, and what its blanks are made for.
type understood struct {
	policy, blank       policy.Policy // see policy.BeforeStart
	digest, blankDigest string
	config              string // what its guests' agents have to know
	reaches             bool   // see kind
}

func understand(p policy.Policy) (understood, error) {
	config, err := bundle.AgentConfig(p)
	if err != nil {
		return understood{}, err
	}
	blank := p.BeforeStart()
	return understood{p, blank, p.Digest(), blank.Digest(), string(config), len(p.Endpoints()) > len(blank.Endpoints())}, nil
}

// resolve finds out what a request asks for; it calls slow before it reads a document.
func (c *policies) resolve(r control.Request, slow func()) (u understood, err error) {
	p, err := r.Resolve(func(d control.Document) (_ policy.Policy, err error) {
		u, err = c.parse(d, slow)
		return u.policy, err
	})
	if err == nil && r.ImportsLimited {
		return understand(p)
	}
	return u, err
}

// parse is the document's Parse.
func (c *policies) parse(d control.Document, slow func()) (understood, error) {
	c.mu.Lock()
	u, ok := c.read[d]
	c.mu.Unlock()
	if ok {
		return u, nil
	}
	slow()
	p, err := d.Parse()
	if err != nil {
		return understood{}, err
	}
	if u, err = understand(p); err != nil {
		return understood{}, err
	}
	if d.Size() > maxKeptPolicy {
		return u, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read == nil || len(c.read) >= maxPolicies {
		c.read = make(map[control.Document]understood)
	}
	c.read[d] = u
	return u, nil
}
