package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Error says what is wrong with a policy: where, which key, which value, which
// rule it breaks and the way out. Every error of [Parse] and of the modifiers is
// an *Error; Source, Line and Column are empty when no document is involved.
type Error struct {
	Source  string // file name, or what the caller gave [Parse]
	Line    int    // first line is 1; 0: unknown
	Column  int    // in characters, first is 1; 0: unknown
	Key     string // the key of the document, such as "mem" or "fs"; may be empty
	Value   string // the offending value as written; may be empty
	Rule    string // the rule that the value breaks
	WayOut  string // what to write instead; may be empty
	Nearest string // the valid key, unit or name that looks most like Value; may be empty
}

// shownValue bounds the part of a value that a message repeats, in bytes: a
// value can be as large as a document.
const shownValue = 100

// Error formats as "source:line:column: key: "value": rule: way out (did you mean "x"?)".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Source != "" {
		b.WriteString(e.Source)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
			if e.Column > 0 {
				fmt.Fprintf(&b, ":%d", e.Column)
			}
		}
		b.WriteString(": ")
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	if e.Value != "" {
		b.WriteString(quote(e.Value) + ": ")
	}
	b.WriteString(e.Rule)
	if e.WayOut != "" {
		b.WriteString(": " + e.WayOut)
	}
	if e.Nearest != "" {
		fmt.Fprintf(&b, " (did you mean %q?)", e.Nearest)
	}
	return b.String()
}

// quote shows a value that may hold anything, terminal escapes included.
func quote(value string) string {
	if len(value) > shownValue {
		return strconv.Quote(value[:shownValue]) + "…"
	}
	return strconv.Quote(value)
}

// in returns e as found in the value n of key in source.
func (e *Error) in(source, key string, n *node) *Error {
	e.Source, e.Line, e.Column = source, n.line, n.column
	e.Key = key
	return e
}
