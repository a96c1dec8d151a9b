package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// nodeKind is what a value of a document is, after the syntax is forgotten.
type nodeKind string

// The names are what error messages call the kinds.
const (
	nullNode   nodeKind = "nothing"
	boolNode   nodeKind = "true or false"
	numberNode nodeKind = "a number"
	textNode   nodeKind = "text"
	listNode   nodeKind = "a list"
	mapNode    nodeKind = "a set of keys and values"
	otherNode  nodeKind = "a value of another type"
	faultyNode nodeKind = "a value with an error" // which is reported already
)

// node is one value of a document. Both syntaxes become the same tree, so that
// one reader gives one meaning and the same errors for either.
type node struct {
	kind         nodeKind
	text         string  // of scalars, as written (texts: unquoted)
	items        []*node // of a list; of a map the values
	keys         []*node // of a map, all texts, each once
	line, column int
}

// Bounds of a tree. Aliases count as often as they are used, so that a small
// document cannot stand for a large one.
const (
	maxNodes = 50_000
	maxDepth = 16
)

// readTree reads a document in either syntax. Whatever is valid JSON is read as
// JSON: YAML readers differ from it in escapes. The tree is nil when nothing can
// be said about its meaning; else the errors are about single nodes of it.
func readTree(data []byte, source string) (*node, []*Error) {
	if err := checkText(data, source); err != nil {
		return nil, []*Error{err}
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	var faults []*Error
	read := readYAML
	if looksLikeJSON(data, source) {
		read = readJSON
	}
	root, err := read(data, source, &faults)
	if err != nil {
		return nil, append(faults, err)
	}
	return root, faults
}

// checkText reports what no reader should be given.
func checkText(data []byte, source string) *Error {
	if len(data) > maxDocument {
		return &Error{Source: source, Rule: fmt.Sprintf("the document is larger than %s", formatSize(maxDocument)),
			WayOut: "use fewer rules, with wildcards"}
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if bad := invalidByte(data); bad >= 0 {
		line, column := position(data, bad)
		return &Error{Source: source, Line: line, Column: column, Rule: "the document is not UTF-8 text",
			WayOut: "save it as UTF-8; match file names that are not with ? or *"}
	}
	return nil
}

// invalidByte returns the offset of the first byte that is not UTF-8, or -1.
func invalidByte(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// position returns line and column of a byte offset.
func position(data []byte, offset int) (line, column int) {
	before := data[:offset]
	line = bytes.Count(before, []byte("\n")) + 1
	return line, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
}

func emptyDocument(source string) *Error {
	return &Error{Source: source, Rule: "the document is empty", WayOut: "write {} for the default policy"}
}

// readYAML reads one YAML document into a tree.
func readYAML(data []byte, source string, faults *[]*Error) (*node, *Error) {
	root, err := decodeYAML(data)
	if errors.Is(err, io.EOF) {
		return nil, emptyDocument(source)
	}
	if err != nil {
		message := strings.TrimPrefix(err.Error(), "yaml: ")
		e := &Error{Source: source}
		// The library gives the line of a syntax error only in its text.
		if n, _ := fmt.Sscanf(message, "line %d:", &e.Line); n == 1 {
			message = strings.TrimPrefix(message, fmt.Sprintf("line %d: ", e.Line))
		}
		e.Rule = "is not valid YAML: " + message
		if indentedByTab(data, e.Line) {
			e.Rule, e.WayOut = "is not valid YAML: it is indented with a tab", "indent with spaces"
		}
		return nil, e
	}
	t := yamlTree{source: source, faults: faults}
	return t.convert(root, 0)
}

// indentedByTab reports whether a line, or one beside it (the library is not exact), is.
func indentedByTab(data []byte, line int) bool {
	lines := bytes.Split(data, []byte("\n"))
	for n := max(line-1, 1); n <= min(line+1, len(lines)); n++ {
		text := lines[n-1]
		if indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]; line > 0 && bytes.ContainsRune(indent, '\t') {
			return true
		}
	}
	return false
}

var errSecondDocument = errors.New("it holds a second document")

// decodeYAML parses the first document of data, and refuses a second one.
func decodeYAML(data []byte) (root *yaml.Node, err error) {
	// A supervisor parses policies of other users: a fault in the library must
	// be an error of the policy, not the end of every guest.
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("reading it failed: %v", fault)
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := decoder.Decode(&first); err != nil {
		return nil, err
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, errSecondDocument
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	if first.Kind != yaml.DocumentNode || len(first.Content) != 1 {
		return nil, io.EOF
	}
	return first.Content[0], nil
}

// yamlTree converts the library's nodes and counts them.
type yamlTree struct {
	source string
	nodes  int
	faults *[]*Error // about single nodes; what returns an error ends the reading
}

func (t *yamlTree) convert(y *yaml.Node, depth int) (*node, *Error) {
	bad := func(rule, wayOut string) (*node, *Error) {
		return nil, &Error{Source: t.source, Line: y.Line, Column: y.Column, Rule: rule, WayOut: wayOut}
	}
	if t.nodes++; t.nodes > maxNodes {
		return bad(fmt.Sprintf("the document holds more than %d values, aliases counted as often as they are used", maxNodes),
			"use fewer rules, with wildcards")
	}
	if depth > maxDepth {
		return bad(fmt.Sprintf("the document is nested more than %d deep", maxDepth), "no key of a policy needs that: see the keys in docs/policy.md")
	}
	n := &node{line: y.Line, column: y.Column, text: y.Value}
	if y.Style&yaml.TaggedStyle != 0 {
		_, err := bad(fmt.Sprintf("has the tag %s, which is not supported", quote(y.Tag)), "remove it; quote a value to make it text")
		*t.faults = append(*t.faults, err)
		n.kind = faultyNode
		return n, nil
	}
	switch y.Kind {
	case yaml.AliasNode:
		return t.convert(y.Alias, depth+1)
	case yaml.ScalarNode:
		n.kind = scalarKind(y)
		return n, nil
	case yaml.SequenceNode:
		n.kind = listNode
		for _, item := range y.Content {
			child, err := t.convert(item, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, child)
		}
		return n, nil
	case yaml.MappingNode:
		n.kind = mapNode
		for i := 0; i+1 < len(y.Content); i += 2 {
			key, err := t.convert(y.Content[i], depth+1)
			if err != nil {
				return nil, err
			}
			value, err := t.convert(y.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			n.keys, n.items = append(n.keys, key), append(n.items, value)
		}
		n.checkKeys(t.source, t.faults)
		return n, nil
	}
	return bad("is not a value", "write a scalar, a list or keys and values")
}

// checkKeys reports keys that are not text, and keys that are there twice, and
// takes them out of the map.
func (n *node) checkKeys(source string, faults *[]*Error) {
	seen := make(map[string]*node, len(n.keys))
	var keys, items []*node
	for i, key := range n.keys {
		var fault *Error
		first, twice := seen[key.text]
		switch {
		case key.kind == faultyNode:
			continue
		case key.kind == otherNode && key.text == "<<":
			fault = &Error{Value: "<<", Rule: "merge keys are not supported", WayOut: "write the keys out"}
		case key.kind != textNode:
			fault = &Error{Value: key.text, Rule: fmt.Sprintf("is %s where a key is expected", key.kind), WayOut: "see the keys in docs/policy.md"}
		case twice:
			fault = &Error{Value: key.text, Rule: "is there twice",
				WayOut: fmt.Sprintf("keep this or the one in line %d, column %d", first.line, first.column)}
		}
		if fault != nil {
			*faults = append(*faults, fault.in(source, "", key))
			continue
		}
		seen[key.text] = key
		keys, items = append(keys, key), append(items, n.items[i])
	}
	n.keys, n.items = keys, items
}

// value returns the value of a key of a map, or nil.
func (n *node) value(key string) *node {
	for i, k := range n.keys {
		if k.text == key {
			return n.items[i]
		}
	}
	return nil
}

func scalarKind(y *yaml.Node) nodeKind {
	switch y.ShortTag() {
	case "!!null":
		return nullNode
	case "!!bool":
		return boolNode
	case "!!int", "!!float":
		return numberNode
	case "!!str":
		return textNode
	}
	return otherNode // a timestamp, binary or merge tag
}
