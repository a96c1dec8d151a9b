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

// tcp reads the endpoints, of PyIsolate's key net too.
func (r *reader) tcp(key string, n *node) {
	const wayOut = `write a list of endpoints, such as ["127.0.0.1:9200"]; [] opens none`
	const entry = `write "host:port" in quotes, or {deny: "host:port"}`
	r.list(key, n, wayOut, func(item *node) {
		switch item.kind {
		case textNode:
			r.addTCP(key, false, item)
		case mapNode:
			r.tcpRule(key, item, entry)
		default:
			r.wrong(key, item, entry)
		}
	})
}

// tcpRule reads an entry of tcp that is written as {deny: endpoint}, or in a
// document of PyIsolate as {connect: endpoint or endpoints}.
func (r *reader) tcpRule(key string, item *node, wayOut string) {
	if len(item.keys) != 1 {
		r.fail((&Error{Rule: fmt.Sprintf("one entry has %d rules", len(item.keys)), WayOut: wayOut}).in(r.source, key, item))
		return
	}
	rule, value := item.keys[0], item.items[0]
	deny := rule.text == "deny"
	switch {
	case deny, r.pyisolate && rule.text == "connect":
	case rule.text == "private":
		r.fail((&Error{Value: rule.text, Rule: "nothing enforces it yet, and what is not enforced is not accepted",
			WayOut: "allow the private address itself"}).in(r.source, key, rule))
		return
	default:
		r.fail((&Error{Value: rule.text, Rule: "is not a rule of tcp", WayOut: wayOut,
			Nearest: nearest(rule.text, []string{"deny"})}).in(r.source, key, rule))
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
			r.translateTCP(key, rule.text, n)
		}
		r.addTCP(key, deny, n)
	}
}

// addTCP adds one endpoint, its variables replaced.
func (r *reader) addTCP(key string, deny bool, n *node) {
	text, err := r.variables.inEndpoint(n.text)
	if r.found(err, key, n) {
		return
	}
	add, prefix := r.policy.addTCP, ""
	if deny {
		add, prefix = r.policy.denyTCP, "deny "
	}
	if r.found(r.asWritten(add(text), n), key, n) {
		return
	}
	e, _ := parseEndpoint(text) // add has just accepted it
	r.set("tcp", prefix+e.String(), n)
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
