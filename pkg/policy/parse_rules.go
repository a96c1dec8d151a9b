package policy

import (
	"fmt"
)

// fs reads the file rules.
func (r *reader) fs(key string, n *node) {
	const wayOut = `write a list of patterns, such as ["/srv/data/**", {write: "/srv/out/**"}]; [] opens none`
	r.list(key, n, wayOut, func(item *node) {
		if item.kind == textNode {
			r.addFS(key, Read, item)
			return
		}
		r.fsRule(key, item)
	})
}

// fsRule reads an entry of fs that is written as {mode: pattern}.
func (r *reader) fsRule(key string, item *node) {
	const wayOut = `write a pattern, or one of {read: pattern}, {write: pattern}, {deny: pattern}`
	if item.kind != mapNode {
		r.wrong(key, item, wayOut)
		return
	}
	bad := false
	for _, mode := range item.keys {
		if r.pyisolate && mode.text == "allow" {
			continue
		}
		if r.found((FSRule{Mode: FSMode(mode.text), Pattern: "/srv/data"}).check(), key, mode) {
			bad = true
		}
	}
	if bad {
		return
	}
	if len(item.keys) != 1 {
		rule := fmt.Sprintf("one entry has %d modes", len(item.keys))
		r.fail((&Error{Rule: rule, WayOut: wayOut + ", each as an entry of its own"}).in(r.source, key, item))
		return
	}
	pattern, mode := item.items[0], FSMode(item.keys[0].text)
	if pattern.kind != textNode {
		r.wrong(key, pattern, "write one pattern as text, such as /srv/data/**")
		return
	}
	if r.pyisolate {
		var keep bool
		if mode, keep = r.translateFS(mode, pattern); !keep {
			return
		}
	}
	r.addFS(key, mode, pattern)
}

// addFS adds one rule, its variables replaced.
func (r *reader) addFS(key string, mode FSMode, n *node) {
	pattern, err := r.variables.inPattern(n.text)
	if r.found(err, key, n) {
		return
	}
	rule := FSRule{Mode: mode, Pattern: pattern}
	if !r.found(r.asWritten(r.policy.addFS(rule), n), key, n) {
		r.set(key, rule.describe(), n)
	}
}

// endpoints reads the rules of tcp or udp, of PyIsolate's key net too.
func (r *reader) endpoints(key string, n *node) {
	const wayOut = `write a list of endpoints, such as ["127.0.0.1:9200"]; [] opens none`
	const entry = `write "host:port" in quotes, {deny: "host:port"}, or {allow: "host:port", private: true}`
	r.list(key, n, wayOut, func(item *node) {
		switch item.kind {
		case textNode:
			r.addEndpoint(key, item, Endpoint{UDP: key == "udp"})
		case mapNode:
			r.endpointRule(key, item, entry)
		default:
			r.wrong(key, item, entry)
		}
	})
}

// endpointRule reads an entry that is written as {deny: endpoint} or {allow:
// endpoint, private: true}, or in a document of PyIsolate as {connect: endpoint or
// endpoints}.
func (r *reader) endpointRule(key string, item *node, wayOut string) {
	like, value, ok := r.endpointMode(key, item, wayOut)
	if !ok {
		return
	}
	values := []*node{value}
	if r.pyisolate && value.kind == listNode {
		values = value.items
	}
	for _, n := range values {
		if n.kind != textNode {
			r.wrong(key, n, `write one endpoint as text, such as "10.0.0.0/8:5432"`)
			continue
		}
		if r.pyisolate {
			r.translateTCP(key, item.keys[0].text, n)
		}
		r.addEndpoint(key, n, like)
	}
}

// endpointMode reads the keys of an entry: what kind of rule it is, and its
// endpoint.
func (r *reader) endpointMode(key string, item *node, wayOut string) (like Endpoint, value *node, ok bool) {
	like.UDP = key == "udp"
	modes := 0
	for i, mode := range item.keys {
		switch {
		case mode.text == "private":
			if like.Private, ok = r.flag(key, item.items[i]); !ok {
				return like, nil, false
			}
			continue
		case mode.text == "allow", mode.text == "deny", r.pyisolate && mode.text == "connect":
			like.Deny, value = mode.text == "deny", item.items[i]
			modes++
		default:
			r.fail((&Error{Value: mode.text, Rule: "is not a rule of " + key, WayOut: wayOut,
				Nearest: nearest(mode.text, []string{"deny", "allow", "private"})}).in(r.source, key, mode))
			return like, nil, false
		}
	}
	switch {
	case modes != 1:
		r.fail((&Error{Rule: fmt.Sprintf("one entry has %d rules", modes), WayOut: wayOut}).in(r.source, key, item))
	case like.Deny && like.Private:
		r.fail((&Error{Rule: "a deny has no private: it takes away wherever the name leads", WayOut: `write {deny: "host:port"}`}).in(r.source, key, item))
	default:
		return like, value, true
	}
	return like, nil, false
}

// addEndpoint adds one endpoint of the kind that like is of, its variables replaced.
func (r *reader) addEndpoint(key string, n *node, like Endpoint) {
	text, err := r.variables.inEndpoint(n.text)
	if r.found(err, key, n) {
		return
	}
	e, err := r.policy.addEndpoint(text, like)
	if !r.found(r.asWritten(err, n), key, n) {
		r.set(e.key(), e.describe(), n)
	}
}

// describe writes the rule as messages do: "read /srv/data/*.csv".
func (r FSRule) describe() string { return string(r.Mode) + " " + r.Pattern }

// asWritten keeps sample values of variables out of an error.
func (r *reader) asWritten(e *Error, n *node) *Error {
	if e != nil && r.variables.sample && e.Value != "" {
		e.Value = n.text
	}
	return e
}

// inOrder sorts errors by their place in the text. Those without one come first.
func inOrder(errs []*Error) []*Error {
	sorted := append([]*Error(nil), errs...)
	sortErrors(sorted)
	if len(sorted) > maxErrors {
		more := len(sorted) - maxErrors
		sorted = append(sorted[:maxErrors], &Error{Source: sorted[0].Source, Rule: fmt.Sprintf("%d more errors", more), WayOut: "correct these first"})
	}
	return sorted
}

// maxErrors bounds what one document can make a reader print.
const maxErrors = 100
