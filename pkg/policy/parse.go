package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Parse reads the document of one sandbox, YAML or JSON, strictly: every key is
// known and there once, every value has its type, unit and range. Keys that are
// missing have the value of [Defaults]. source names the document in errors,
// usually a file; if it ends in ".json" only JSON is accepted. Errors are
// [*Error]s; the first one found is returned.
func Parse(data []byte, source string) (Policy, error) {
	p, err := parse(data, source)
	if err != nil {
		return Policy{}, err
	}
	return p, nil
}

func parse(data []byte, source string) (Policy, *Error) {
	root, err := readTree(data, source)
	if err != nil {
		return Policy{}, err
	}
	if root.kind == nullNode {
		return Policy{}, emptyDocument(source)
	}
	if root.kind != mapNode {
		rule := fmt.Sprintf("the document is %s, not a policy", root.kind)
		return Policy{}, (&Error{Rule: rule, WayOut: "write keys and values, such as mem: 256MiB"}).in(source, "", root)
	}
	r := reader{source: source, policy: Defaults(), keys: keyTable()}
	if err := r.checkNames(root); err != nil {
		return Policy{}, err
	}
	// In the order of the table: read_only decides what fs may hold.
	for _, key := range r.keys {
		for i, name := range root.keys {
			if name.text != key.name {
				continue
			}
			if err := key.read(&r, key.name, root.items[i]); err != nil {
				return Policy{}, err
			}
		}
	}
	if err := r.policy.checkDocument(); err != nil {
		err.Source = source
		return Policy{}, err
	}
	return r.policy, nil
}

// reader fills a policy from a tree.
type reader struct {
	source string
	policy Policy
	keys   []documentKey
}

// documentKey is one key of the document and what reads its value.
type documentKey struct {
	name string
	read func(r *reader, key string, n *node) *Error
}

func keyTable() []documentKey {
	keys := []documentKey{
		{"read_only", func(r *reader, key string, n *node) *Error { return r.flag(key, n, &r.policy.readOnly) }},
		{"allow_degraded", func(r *reader, key string, n *node) *Error { return r.flag(key, n, &r.policy.allowDegraded) }},
		{"cpu", (*reader).cpu},
		{"fs", (*reader).fs},
		{"tcp", (*reader).tcp},
		{"imports", (*reader).imports},
	}
	for _, k := range limitTable() {
		keys = append(keys, documentKey{k.key, func(r *reader, key string, n *node) *Error { return r.limit(k, n) }})
	}
	return keys
}

// checkNames reports the first key of the document that a policy does not have.
func (r *reader) checkNames(root *node) *Error {
	names := make([]string, 0, len(r.keys))
	known := make(map[string]bool, len(r.keys))
	for _, key := range r.keys {
		names = append(names, key.name)
		known[key.name] = true
	}
	for _, key := range root.keys {
		if !known[key.text] {
			return (&Error{Value: key.text, Rule: "is not a key of a policy",
				WayOut: "the keys are " + strings.Join(names, ", "), Nearest: nearest(key.text, names)}).in(r.source, "", key)
		}
	}
	return nil
}

// wrong reports a value of another kind than the key has.
func (r *reader) wrong(key string, n *node, wayOut string) *Error {
	return (&Error{Value: n.text, Rule: fmt.Sprintf("is %s", n.kind), WayOut: wayOut}).in(r.source, key, n)
}

func (r *reader) flag(key string, n *node, field *bool) *Error {
	if n.kind != boolNode || n.text != "true" && n.text != "false" {
		return (&Error{Value: n.text, Rule: "is not true or false", WayOut: "write true or false"}).in(r.source, key, n)
	}
	*field = n.text == "true"
	return nil
}

func (r *reader) cpu(key string, n *node) *Error {
	if n.kind != numberNode {
		return r.wrong(key, n, "write a number of processors without quotes, such as 0.5")
	}
	// YAML has more ways to write a number than people know of.
	plain := strings.Trim(n.text, "0123456789.eE+-") == ""
	cpu, err := strconv.ParseFloat(n.text, 64)
	if err != nil || !plain {
		return (&Error{Value: n.text, Rule: "is not a decimal number", WayOut: "write a number of processors, such as 0.5"}).in(r.source, key, n)
	}
	if err := checkCPU(cpu, n.text); err != nil {
		return err.in(r.source, key, n)
	}
	r.policy.limits.CPU = cpu
	return nil
}

func (r *reader) limit(k limit, n *node) *Error {
	wayOut := "write a whole number without quotes, such as " + strconv.FormatInt(k.min*10, 10)
	var value int64
	switch {
	case n.kind == textNode && k.size:
		size, err := parseSize(n.text)
		if err != nil {
			return err.in(r.source, k.key, n)
		}
		value = size
	case n.kind == numberNode:
		number, err := strconv.ParseInt(n.text, 10, 64)
		if err != nil || !isDigits(n.text) || n.text[0] == '0' && n.text != "0" {
			return (&Error{Value: n.text, Rule: "is not a whole decimal number", WayOut: wayOut}).in(r.source, k.key, n)
		}
		value = number
	default:
		if k.size {
			wayOut = "write a size such as 64MiB, or a number of bytes"
		}
		return r.wrong(k.key, n, wayOut)
	}
	if err := k.check(value, n.text); err != nil {
		return err.in(r.source, k.key, n)
	}
	k.set(&r.policy.limits, value)
	return nil
}

// list checks that n is a list and hands its entries to add.
func (r *reader) list(key string, n *node, wayOut string, add func(*node) *Error) *Error {
	if n.kind != listNode {
		return r.wrong(key, n, wayOut)
	}
	for _, item := range n.items {
		if err := add(item); err != nil {
			if err.Line == 0 {
				err = err.in(r.source, key, item)
			}
			return err
		}
	}
	return nil
}

func (r *reader) tcp(key string, n *node) *Error {
	const wayOut = `write a list of endpoints, such as ["127.0.0.1:9200"]; [] opens none`
	return r.list(key, n, wayOut, func(item *node) *Error {
		if item.kind != textNode {
			return r.wrong(key, item, `write "host:port" in quotes`)
		}
		return r.policy.addTCP(item.text)
	})
}

func (r *reader) imports(key string, n *node) *Error {
	const wayOut = "write a list of modules, such as [math, json]; [] permits none, without the key every module is permitted"
	r.policy.importsLimited = true
	return r.list(key, n, wayOut, func(item *node) *Error {
		if item.kind != textNode {
			return r.wrong(key, item, "write the name of a module")
		}
		return r.policy.addImport(item.text)
	})
}

func (r *reader) fs(key string, n *node) *Error {
	const wayOut = `write a list of patterns, such as ["/srv/data/**", {write: "/srv/out/**"}]; [] opens none`
	return r.list(key, n, wayOut, func(item *node) *Error {
		if item.kind == textNode {
			return r.policy.addFS(FSRule{Mode: Read, Pattern: item.text})
		}
		return r.fsRule(key, item)
	})
}

// fsRule reads an entry of fs that is written as {mode: pattern}.
func (r *reader) fsRule(key string, item *node) *Error {
	const wayOut = `write a pattern, or one of {read: pattern}, {write: pattern}, {deny: pattern}`
	if item.kind != mapNode {
		return r.wrong(key, item, wayOut)
	}
	for _, mode := range item.keys {
		if err := (FSRule{Mode: FSMode(mode.text), Pattern: "/srv/data"}).check(); err != nil {
			return err.in(r.source, key, mode)
		}
	}
	if len(item.keys) != 1 {
		rule := fmt.Sprintf("one entry has %d modes", len(item.keys))
		return (&Error{Rule: rule, WayOut: wayOut + ", each as an entry of its own"}).in(r.source, key, item)
	}
	pattern := item.items[0]
	if pattern.kind != textNode {
		return r.wrong(key, pattern, "write one pattern as text, such as /srv/data/**")
	}
	if err := r.policy.addFS(FSRule{Mode: FSMode(item.keys[0].text), Pattern: pattern.text}); err != nil {
		return err.in(r.source, key, pattern)
	}
	return nil
}
