package engine

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Choice is what Settle found.
type Choice struct {
	Policy policy.Policy
	Own    bool    // a bundle that psi-runtime bundle made: endpoints and ids are its own
	Bounds []Bound // within which the policy is, and any later one has to be
}

// Lookup finds a policy by its name; policy.Lookup does.
type Lookup func(name string) (policy.Policy, error)

// Settle decides which policy a container has; nil is none. In this order, each
// within what the ones before it require:
//
//	the configuration's, if it is mandatory
//	flag, the name that --policy gave
//	the annotation's, a document or a name
//	else the flag's, else the configuration's
//
// It is where everything else of a container that speaks of policies is refused.
func Settle(spec *specs.Spec, rules Rules, flag string, lookup Lookup) (*Choice, error) {
	counting := rules.counting(flag != "")
	own, err := ownBundle(spec, counting)
	if err != nil {
		return nil, err
	}
	var chosen *policy.Policy
	var bounds []Bound
	if rules.Policy != "" {
		p, err := lookup(rules.Policy)
		if err != nil {
			return nil, fmt.Errorf("finding the policy of the configuration: %w", err)
		}
		chosen = &p
		if rules.Mandatory {
			bounds = append(bounds, Bound{"the mandatory policy " + rules.Policy, p})
		}
	}
	if flag != "" {
		p, err := lookup(flag)
		if err != nil {
			return nil, fmt.Errorf("finding the policy of --policy: %w", err)
		}
		if err := within(p, "--policy "+flag, bounds); err != nil {
			return nil, err
		}
		chosen = &p
		bounds = append(bounds, Bound{"--policy " + flag, p})
	}
	p, key, err := annotated(spec, counting, lookup)
	if err != nil {
		return nil, err
	}
	if p != nil {
		if err := within(*p, "annotation "+key, bounds); err != nil {
			return nil, err
		}
		chosen = p
	}
	if chosen == nil {
		return nil, nil
	}
	if own && p == nil {
		return nil, fmt.Errorf("a bundle with %s=auto has to carry its policy: make it again with psi-runtime bundle", IDsKey)
	}
	return &Choice{Policy: *chosen, Own: own, Bounds: bounds}, nil
}

// ownBundle reports whether the bundle is one of psi's own.
func ownBundle(spec *specs.Spec, counting []string) (bool, error) {
	value, ok := spec.Annotations[IDsKey]
	if !ok {
		return false, nil
	}
	if !slices.Contains(counting, IDsKey) {
		return false, doesNotCount(IDsKey, counting)
	}
	if value != "auto" {
		return false, fmt.Errorf("annotation %s %q: it is auto", IDsKey, value)
	}
	return true, nil
}

func doesNotCount(key string, counting []string) error {
	return fmt.Errorf("annotation %s does not count on this host, where these do: [%s]: remove it, or list it in %s", key, strings.Join(counting, " "), ConfigFile)
}

// annotated returns the policy that the container brings, and where it was.
func annotated(spec *specs.Spec, counting []string, lookup Lookup) (p *policy.Policy, key string, err error) {
	if _, ok := spec.Annotations[PolicyKey]; ok && !slices.Contains(counting, PolicyKey) {
		return nil, "", doesNotCount(PolicyKey, counting)
	}
	for _, name := range counting {
		text, ok := spec.Annotations[name]
		if !ok || name == IDsKey {
			continue
		}
		q, err := readPolicy(text, name, lookup)
		if err != nil {
			return nil, "", fmt.Errorf("reading the container's policy: %w", err)
		}
		if p != nil && p.Digest() != q.Digest() {
			return nil, "", fmt.Errorf("annotations %s and %s hold different policies: keep one", key, name)
		}
		p, key = &q, name
	}
	return p, key, nil
}

// readPolicy reads a document, or looks up a name.
func readPolicy(text, key string, lookup Lookup) (policy.Policy, error) {
	if len(text) <= 130 && !strings.ContainsAny(text, "{}:\n\r\t ") && text != "" {
		p, err := lookup(text)
		if err != nil {
			return p, fmt.Errorf("annotation %s names a policy: %w", key, err)
		}
		return p, nil
	}
	return policy.Parse([]byte(text), "annotation "+key)
}

// Bound is a policy beyond which nothing may be permitted.
type Bound struct {
	What   string // "the mandatory policy strict"
	Policy policy.Policy
}

// within refuses a policy that permits more than the bounds.
func within(p policy.Policy, what string, bounds []Bound) error {
	for _, b := range bounds {
		more, err := policy.Compare(b.Policy, p)
		if err != nil {
			return fmt.Errorf("comparing the policy of %s with %s: %w", what, b.What, err)
		}
		if len(more) > 0 {
			return fmt.Errorf("the policy of %s permits what %s does not: %s: narrow it, or leave it out", what, b.What, more[0])
		}
	}
	return nil
}
