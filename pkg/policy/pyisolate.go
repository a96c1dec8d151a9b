package policy

import "strings"

// Note says that something in a document was read as something else.
type Note struct {
	Source       string
	Line, Column int
	Text         string // what was translated, and into what
}

// String formats as "source:line:column: text".
func (n Note) String() string {
	return (&Error{Source: n.Source, Line: n.Line, Column: n.Column, Rule: n.Text}).Error()
}

// Documents of PyIsolate (POLICY.md of its version 1.0) say "version: 1.0". They
// have the same form as ours, older names for some rules, and two other
// meanings: without imports nothing may be imported, and a "*" of a path crossed
// slashes. What is translated is noted.

// pyisolateVersion is how those documents give their version. It is compared as
// text: to YAML 1 and 1.0 are two ways to write one number.
const pyisolateVersion = "1.0"

func (r *reader) note(n *node, text string) {
	r.notes = append(r.notes, Note{Source: r.source, Line: n.line, Column: n.column, Text: text})
}

// translateFS returns the mode for a rule of PyIsolate. keep is false when the
// guest has what the rule opens without it.
func (r *reader) translateFS(mode FSMode, pattern *node) (_ FSMode, keep bool) {
	shown := quote(pattern.text)
	if mode != Deny && (pattern.text == "/tmp" || pattern.text == "/tmp/**") {
		r.note(pattern, "fs: "+string(mode)+" "+shown+" is left out: every guest has a /tmp of its own; that of the host stays hidden")
		return mode, false
	}
	switch mode {
	case "allow":
		r.note(pattern, "fs: allow "+shown+" is read as {write: "+shown+"}, which permits reading and writing")
		mode = Write
	case Write:
		r.note(pattern, "fs: write "+shown+" permits reading too: there is no rule for writing only")
	}
	if strings.Contains(strings.ReplaceAll(pattern.text, "/**", ""), "*") {
		r.note(pattern, "fs: the * in "+shown+" matches within one name; PyIsolate let it match slashes too: write ** for directories")
	}
	return mode, true
}

// translateTCP notes how an endpoint of PyIsolate is read.
func (r *reader) translateTCP(key, rule string, n *node) {
	shown := quote(n.text)
	if rule == "connect" {
		r.note(n, key+": connect "+shown+" is read as tcp: ["+shown+"]")
		return
	}
	if key == "net" {
		r.note(n, "net: deny "+shown+" is read as tcp: [{deny: "+shown+"}]")
	}
}
