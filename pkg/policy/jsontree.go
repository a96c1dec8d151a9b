package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// looksLikeJSON reports whether data is to be read as JSON: it is valid, or the
// file says that it should be.
func looksLikeJSON(data []byte, source string) bool {
	return strings.HasSuffix(source, ".json") || json.Valid(data)
}

// readJSON reads a JSON document into a tree.
func readJSON(data []byte, source string, faults *[]*Error) (*node, *Error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, emptyDocument(source)
	}
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		e := &Error{Source: source, Rule: "is not valid JSON: " + err.Error()}
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			e.Line, e.Column = position(data, max(0, min(len(data), int(syntax.Offset))-1))
		}
		return nil, e
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	t := jsonTree{source: source, faults: faults, data: data, decoder: decoder, line: 1, column: 1}
	return t.value(0)
}

// jsonTree reads valid JSON token by token, which keeps duplicate keys and
// positions, both lost by decoding into Go values.
type jsonTree struct {
	source  string
	faults  *[]*Error
	data    []byte
	decoder *json.Decoder
	nodes   int

	at, line, column int // the position reached: offset, and what it is for people
}

// token returns the next token and a node with its position.
func (t *jsonTree) token() (json.Token, *node, *Error) {
	start := int(t.decoder.InputOffset())
	for start < len(t.data) && strings.IndexByte(" \t\r\n,:", t.data[start]) >= 0 {
		start++
	}
	for ; t.at < start; t.at++ {
		switch c := t.data[t.at]; {
		case c == '\n':
			t.line, t.column = t.line+1, 1
		case c&0xC0 != 0x80: // not a continuation byte of UTF-8
			t.column++
		}
	}
	n := &node{line: t.line, column: t.column}
	token, err := t.decoder.Token()
	if err != nil {
		return nil, nil, t.bad(n, "is not valid JSON: "+err.Error(), "")
	}
	if t.nodes++; t.nodes > maxNodes {
		return nil, nil, t.bad(n, fmt.Sprintf("the document holds more than %d values", maxNodes), "use fewer rules, with wildcards")
	}
	return token, n, nil
}

func (t *jsonTree) bad(n *node, rule, wayOut string) *Error {
	return &Error{Source: t.source, Line: n.line, Column: n.column, Rule: rule, WayOut: wayOut}
}

func (t *jsonTree) value(depth int) (*node, *Error) {
	token, n, err := t.token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, t.bad(n, fmt.Sprintf("the document is nested more than %d deep", maxDepth),
			"no key of a policy needs that: see the keys in docs/policy.md")
	}
	switch token := token.(type) {
	case nil:
		n.kind = nullNode
	case bool:
		n.kind, n.text = boolNode, fmt.Sprint(token)
	case json.Number:
		n.kind, n.text = numberNode, token.String()
	case string:
		n.kind, n.text = textNode, token
	case json.Delim:
		n.kind = listNode
		if token == '{' {
			n.kind = mapNode
		}
		if err := t.inside(n, depth); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// inside reads what a list or map holds, and its closing bracket.
func (t *jsonTree) inside(n *node, depth int) *Error {
	for t.decoder.More() {
		if n.kind == mapNode {
			key, err := t.value(depth + 1)
			if err != nil {
				return err
			}
			n.keys = append(n.keys, key)
		}
		item, err := t.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	if _, _, err := t.token(); err != nil {
		return err
	}
	if n.kind == mapNode {
		n.checkKeys(t.source, t.faults)
	}
	return nil
}
