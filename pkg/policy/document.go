package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Document is a policy document that was read and found valid: either one
// sandbox without a name, or sandboxes with names, which may extend each other.
type Document struct {
	source    string
	data      []byte
	pyisolate bool
	single    bool
	defaults  *node // may be nil
	sandboxes []*sandbox
	notes     []Note
	resolved  *resolver // when there are no variables: every sandbox, put together
}

// sandbox is one body of a document.
type sandbox struct {
	name    string // "" in a document with a single body
	at      *node  // the name, or the document
	body    *node
	extends *node // the name of the parent; nil without
}

// maxSandboxes bounds the sandboxes of one document.
const maxSandboxes = 256

// rootKeys are the keys of a document with named sandboxes.
func rootKeys() []string { return []string{"version", "defaults", "sandboxes"} }

// ReadDocument reads a document and checks all of it: every sandbox, with the
// defaults and the parents that it has. Variables need no values here. The
// document is nil when there are errors, and the first of them is the one that
// [Parse] returns.
func ReadDocument(data []byte, source string) (*Document, []*Error) {
	d := &Document{source: source, data: data}
	root, errs := readTree(data, source)
	if root != nil {
		errs = append(errs, d.structure(root)...)
		v := &variables{sample: true, used: make(map[string]bool)}
		r := d.resolver(v)
		r.base()
		for _, s := range d.sandboxes {
			r.resolve(s)
		}
		errs = append(errs, r.errs...)
		d.notes = r.notes
		if len(v.used) == 0 {
			d.resolved = r
		}
	}
	if len(errs) > 0 {
		locate(data, errs)
		return nil, errs
	}
	slices.SortStableFunc(d.notes, func(a, b Note) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
	return d, nil
}

// structure finds the bodies of the document.
func (d *Document) structure(root *node) []*Error {
	if root.kind == nullNode {
		return []*Error{emptyDocument(d.source)}
	}
	if root.kind != mapNode {
		rule := fmt.Sprintf("the document is %s, not a policy", root.kind)
		return []*Error{(&Error{Rule: rule, WayOut: "write keys and values, such as mem: 256MiB"}).in(d.source, "", root)}
	}
	errs := d.version(root)
	if root.value("sandboxes") == nil && root.value("defaults") == nil {
		d.single = true
		d.sandboxes = []*sandbox{{at: root, body: root}}
		return errs
	}
	for _, key := range root.keys {
		if slices.Contains(rootKeys(), key.text) {
			continue
		}
		e := &Error{Value: key.text, Rule: "is not a key of a document with sandboxes", WayOut: "the keys are " + strings.Join(rootKeys(), ", "),
			Nearest: nearest(key.text, rootKeys())}
		if slices.Contains(keyNames(), key.text) {
			e.WayOut, e.Nearest = "write it below defaults: for all of them, or in one of the sandboxes", ""
		}
		errs = append(errs, e.in(d.source, "", key))
	}
	if root.value("version") == nil {
		errs = append(errs, (&Error{Rule: "the document has sandboxes and no version", WayOut: "begin it with version: 1"}).in(d.source, "", root))
	}
	return append(errs, d.bodies(root)...)
}

// version reads the version of the document, which has one form for each.
func (d *Document) version(root *node) []*Error {
	n := root.value("version")
	switch {
	case n == nil, n.kind == numberNode && n.text == "1", n.kind == faultyNode:
		return nil
	case (n.kind == numberNode || n.kind == textNode) && n.text == pyisolateVersion:
		d.pyisolate = true
		return nil
	}
	return []*Error{(&Error{Value: n.text, Rule: "is not a version of the policy language",
		WayOut: "write 1 without quotes; documents of PyIsolate have 1.0"}).in(d.source, "version", n)}
}

// bodies finds the defaults and the named sandboxes.
func (d *Document) bodies(root *node) []*Error {
	var errs []*Error
	fail := func(e *Error, key string, n *node) { errs = append(errs, e.in(d.source, key, n)) }
	if n := root.value("defaults"); n != nil {
		switch {
		case n.kind == mapNode:
			d.defaults = n
		case n.kind == nullNode && d.pyisolate, n.kind == faultyNode:
		default:
			fail(&Error{Value: n.text, Rule: fmt.Sprintf("is %s", n.kind), WayOut: "write keys and values, such as {mem: 256MiB}"}, "defaults", n)
		}
	}
	list := root.value("sandboxes")
	const wayOut = "write names and their policies, such as job: {mem: 256MiB}"
	switch {
	case list == nil:
		fail(&Error{Rule: "the document has defaults and no sandboxes", WayOut: "add sandboxes: with " + strings.TrimPrefix(wayOut, "write ")}, "", root)
		return errs
	case list.kind == faultyNode:
		return errs
	case list.kind != mapNode || len(list.keys) == 0:
		fail(&Error{Value: list.text, Rule: fmt.Sprintf("is %s", list.kind), WayOut: wayOut}, "sandboxes", list)
		if list.kind == mapNode {
			errs[len(errs)-1].Rule = "holds no sandbox"
		}
		return errs
	case len(list.keys) > maxSandboxes:
		fail(&Error{Rule: fmt.Sprintf("holds more than %d sandboxes", maxSandboxes), WayOut: "use several files"}, "sandboxes", list)
		return errs
	}
	for i, name := range list.keys {
		s := &sandbox{name: name.text, at: name, body: list.items[i]}
		if err := checkSandboxName(name.text); err != nil {
			fail(err, "sandboxes", name)
			continue
		}
		if s.body.kind != mapNode {
			if s.body.kind != faultyNode {
				fail(&Error{Value: s.body.text, Rule: fmt.Sprintf("the sandbox %s is %s", s.name, s.body.kind), WayOut: "write keys and values, or {} for the defaults"}, "sandboxes", s.body)
			}
			s.body = &node{kind: mapNode, line: name.line, column: name.column}
		}
		if s.extends = s.body.value("extends"); s.extends != nil && s.extends.kind != textNode {
			if s.extends.kind != faultyNode {
				fail(&Error{Value: s.extends.text, Rule: fmt.Sprintf("is %s", s.extends.kind), WayOut: "write the name of one sandbox of this document"}, "extends", s.extends)
			}
			s.extends = nil
		}
		d.sandboxes = append(d.sandboxes, s)
	}
	return errs
}

// checkSandboxName reports what cannot be the name of a sandbox: it stands
// behind a "#" where policies are chosen.
func checkSandboxName(name string) *Error {
	err := checkName(name)
	if err == nil && hasExtension(name) {
		err = &Error{Value: name, Rule: "ends like a file", WayOut: "give it a name without " + strings.Join(extensions(), ", ")}
	}
	if err != nil {
		err.Rule = strings.ReplaceAll(err.Rule, "policy", "sandbox")
	}
	return err
}

// Names returns the names of the sandboxes in the order of the document; none
// for a document with a single body.
func (d *Document) Names() []string {
	if d.single {
		return nil
	}
	var names []string
	for _, s := range d.sandboxes {
		names = append(names, s.name)
	}
	return names
}

// Source returns what the document was called when it was read.
func (d *Document) Source() string { return d.source }

// Notes returns what was translated from another form, in the order of the text.
func (d *Document) Notes() []Note { return slices.Clone(d.notes) }

// choose returns the sandbox with a name.
func (d *Document) choose(name string) (*sandbox, *Error) {
	names := d.Names()
	fault := &Error{Source: d.source, Value: name}
	switch {
	case name == "" && len(d.sandboxes) == 1:
		return d.sandboxes[0], nil
	case name == "":
		fault.Rule = "holds several sandboxes: " + strings.Join(names, ", ")
		fault.WayOut = fmt.Sprintf("choose one, such as %s#%s", d.source, names[0])
		return nil, fault
	case d.single:
		fault.Rule, fault.WayOut = "the document holds one policy without a name", "leave the name out: "+d.source
		return nil, fault
	}
	for _, s := range d.sandboxes {
		if s.name == name {
			return s, nil
		}
	}
	fault.Rule, fault.WayOut = "is not a sandbox of the document", "it holds "+strings.Join(names, ", ")
	fault.Nearest = nearest(name, names)
	return nil, fault
}

// Variables returns the names of the variables that a sandbox needs, sorted.
// Errors are those of an unknown sandbox.
func (d *Document) Variables(name string) ([]string, error) {
	s, err := d.choose(name)
	if err != nil {
		return nil, err
	}
	v := &variables{sample: true, used: make(map[string]bool)}
	d.resolver(v).resolve(s)
	return slices.Sorted(maps.Keys(v.used)), nil
}
