package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Parse reads a document that holds one sandbox, YAML or JSON, strictly: every
// key is known and there once, every value has its type, unit and range. Keys
// that are missing have the value of [Defaults]. source names the document in
// errors, usually a file; if it ends in ".json" only JSON is accepted. Errors are
// [*Error]s; the first one found is returned. [ParseSandbox] chooses one of
// several sandboxes and gives variables their values; [CheckAll] returns every
// error.
func Parse(data []byte, source string) (Policy, error) {
	return ParseSandbox(data, source, Choice{})
}

// Choice says which policy of a document is meant, and what its variables hold.
type Choice struct {
	Sandbox   string            // may be empty when there is only one
	Variables map[string]string // by name, without "${" and "}"; all that the sandbox uses, and no other
}

// ParseSandbox is [Parse] for a document with several sandboxes or with variables.
func ParseSandbox(data []byte, source string, choice Choice) (Policy, error) {
	document, errs := ReadDocument(data, source)
	if len(errs) > 0 {
		return Policy{}, errs[0]
	}
	effective, err := document.Resolve(choice)
	if err != nil {
		return Policy{}, err
	}
	return effective.Policy, nil
}

// CheckAll returns every error of a document, in the order of the text; nil when
// it is valid. An error of syntax hides those behind it.
func CheckAll(data []byte, source string) []*Error {
	_, errs := ReadDocument(data, source)
	return inOrder(errs)
}

// reader fills a policy from the bodies of a sandbox, of its parents and of the
// defaults, one after another.
type reader struct {
	source    string
	pyisolate bool   // the document is one of PyIsolate
	from      string // what the body is called in origins
	variables *variables

	policy  Policy
	origins []Origin // of what the policy holds so far
	errs    []*Error // of the body that was read last
	notes   []Note   // likewise
}

// documentKey is one key of a body and what reads its value.
type documentKey struct {
	name string
	read func(r *reader, key string, n *node)
}

func keyTable() []documentKey {
	keys := []documentKey{
		{"read_only", (*reader).readOnly},
		{"allow_degraded", (*reader).allowDegraded},
		{"cpu", (*reader).cpu},
		{"fs", (*reader).fs},
		{"tcp", (*reader).endpoints},
		{"udp", (*reader).endpoints},
		{"expose", (*reader).exposed},
		{"imports", (*reader).imports},
	}
	for _, k := range limitTable() {
		keys = append(keys, documentKey{k.key, func(r *reader, _ string, n *node) { r.limit(k, n) }})
	}
	return append(keys, documentKey{"seccomp", (*reader).seccompFilter}, documentKey{"isolation", (*reader).isolation}, documentKey{"preload", (*reader).readPreload})
}

// keyNames lists the keys of a body.
func keyNames() []string {
	var names []string
	for _, key := range keyTable() {
		names = append(names, key.name)
	}
	return names
}

// body reads the keys of one body; those in structure are somebody else's.
func (r *reader) body(body *node, structure ...string) {
	keys := keyTable()
	if r.pyisolate {
		keys = append(keys, documentKey{"net", (*reader).endpoints})
	}
	known := make(map[string]bool, len(keys))
	for _, key := range keys {
		known[key.name] = true
	}
	for _, key := range body.keys {
		if !known[key.text] && !slices.Contains(structure, key.text) {
			r.fail(unknownKey(key.text).in(r.source, "", key))
		}
	}
	// In the order of the table: read_only decides what fs may hold.
	for _, key := range keys {
		if n := body.value(key.name); n != nil && n.kind != faultyNode {
			key.read(r, key.name, n)
		}
	}
}

// unknownKey says what is wrong with a key that a body does not have.
func unknownKey(key string) *Error {
	names := keyNames()
	e := &Error{Value: key, Rule: "is not a key of a policy", WayOut: "the keys are " + strings.Join(names, ", ")}
	switch key {
	case "extends":
		e.WayOut = "it stands in a sandbox, below sandboxes:"
	case "net":
		e.WayOut = `write tcp: ["127.0.0.1:9200"]; net is a key of PyIsolate's documents, which begin with version: 1.0`
	case "unix":
		e.WayOut = "nothing enforces it yet, and what is not enforced is not accepted: remove it"
	default:
		e.Nearest = nearest(key, append(names, "version", "defaults", "sandboxes"))
	}
	return e
}

func (r *reader) fail(e *Error) { r.errs = append(r.errs, e) }

// found is fail for an error about a value, which may be none.
func (r *reader) found(e *Error, key string, n *node) bool {
	if e == nil {
		return false
	}
	if e.Line == 0 {
		e = e.in(r.source, key, n)
	}
	r.fail(e)
	return true
}

// wrong reports a value of another kind than the key has.
func (r *reader) wrong(key string, n *node, wayOut string) {
	if n.kind == faultyNode {
		return
	}
	r.fail((&Error{Value: n.text, Rule: fmt.Sprintf("is %s", n.kind), WayOut: wayOut}).in(r.source, key, n))
}

func (r *reader) flag(key string, n *node) (value, ok bool) {
	if n.kind != boolNode || n.text != "true" && n.text != "false" {
		r.fail((&Error{Value: n.text, Rule: "is not true or false", WayOut: "write true or false"}).in(r.source, key, n))
		return false, false
	}
	return n.text == "true", true
}

// readOnly takes no parent's true back, and finds no rule that writes: like a
// deny it wins.
func (r *reader) readOnly(key string, n *node) {
	value, ok := r.flag(key, n)
	if !ok {
		return
	}
	if r.policy.readOnly && !value {
		r.fail((&Error{Value: n.text, Rule: "takes back the read_only: true that the sandbox inherits", WayOut: "remove it, or extend another sandbox"}).in(r.source, key, n))
		return
	}
	if at := slices.IndexFunc(r.policy.fs, func(rule FSRule) bool { return rule.Mode == Write }); value && at >= 0 {
		r.fail((&Error{Value: n.text, Rule: fmt.Sprintf("the sandbox inherits a rule that writes: %s", quote(r.policy.fs[at].Pattern)),
			WayOut: "deny the pattern instead, or extend another sandbox"}).in(r.source, key, n))
		return
	}
	r.policy.readOnly = value
	r.set(key, n.text, n)
}

func (r *reader) allowDegraded(key string, n *node) {
	if value, ok := r.flag(key, n); ok {
		r.policy.allowDegraded = value
		r.set(key, n.text, n)
	}
}

func (r *reader) cpu(key string, n *node) {
	if n.kind != numberNode {
		r.wrong(key, n, "write a number of processors without quotes, such as 0.5")
		return
	}
	// YAML has more ways to write a number than people know of.
	plain := strings.Trim(n.text, "0123456789.eE+-") == ""
	cpu, err := strconv.ParseFloat(n.text, 64)
	if err != nil || !plain {
		r.fail((&Error{Value: n.text, Rule: "is not a decimal number", WayOut: "write a number of processors, such as 0.5"}).in(r.source, key, n))
		return
	}
	if r.found(checkCPU(cpu, n.text), key, n) {
		return
	}
	r.policy.limits.CPU = cpu
	r.set(key, strconv.FormatFloat(cpu, 'g', -1, 64), n)
}

func (r *reader) limit(k limit, n *node) {
	wayOut := "write a whole number without quotes, such as " + strconv.FormatInt(k.min*10, 10)
	var value int64
	switch {
	case n.kind == textNode && k.size:
		size, err := parseSize(n.text)
		if r.found(err, k.key, n) {
			return
		}
		value = size
	case n.kind == numberNode:
		number, err := strconv.ParseInt(n.text, 10, 64)
		if err != nil || !isDigits(n.text) || n.text[0] == '0' && n.text != "0" {
			r.fail((&Error{Value: n.text, Rule: "is not a whole decimal number", WayOut: wayOut}).in(r.source, k.key, n))
			return
		}
		value = number
	default:
		if k.size {
			wayOut = "write a size such as 64MiB, or a number of bytes"
		}
		r.wrong(k.key, n, wayOut)
		return
	}
	if r.found(k.check(value, n.text), k.key, n) {
		return
	}
	k.set(&r.policy.limits, value)
	r.set(k.key, k.format(value), n)
}

// list checks that n is a list and hands its entries to add.
func (r *reader) list(key string, n *node, wayOut string, add func(*node)) {
	if n.kind == nullNode && r.pyisolate {
		return
	}
	if n.kind != listNode {
		r.wrong(key, n, wayOut)
		return
	}
	for _, item := range n.items {
		add(item)
	}
}

func (r *reader) imports(key string, n *node) {
	const wayOut = "write a list of modules, such as [math, json]; [] permits none, without the key every module is permitted"
	if n.kind == listNode && len(n.items) == 0 && len(r.policy.imports) == 0 {
		r.set(key, noModule, n)
	}
	r.policy.importsLimited = true
	r.list(key, n, wayOut, func(item *node) {
		if item.kind != textNode {
			r.wrong(key, item, "write the name of a module")
			return
		}
		if !r.found(r.policy.addImport(item.text), key, item) {
			r.set(key, item.text, item)
		}
	})
}
