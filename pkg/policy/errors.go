package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
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
	Text    string // the line of the document that Line and Column point into; may be empty
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

// shownLine bounds the part of a line that an excerpt repeats, in characters.
const shownLine = 120

// Excerpt returns the line of the document that the error is about, and a second
// line with a mark under the column; both end in a newline. It is empty when the
// line is not known.
func (e *Error) Excerpt() string {
	if e.Text == "" || e.Line == 0 {
		return ""
	}
	line, column := []rune(e.Text), e.Column
	before := ""
	if column > shownLine-20 {
		// The mark would be far to the right, or not there at all.
		cut := min(column-40, len(line))
		before, line, column = "…", line[cut:], column-cut+1
	}
	after := ""
	if len(line) > shownLine {
		line, after = line[:shownLine], "…"
	}
	for i, c := range line {
		if !unicode.IsPrint(c) {
			line[i] = '·' // a tab or a terminal escape; one column, as it is counted
		}
	}
	number := strconv.Itoa(e.Line)
	text := fmt.Sprintf("  %s | %s%s%s\n", number, before, string(line), after)
	if e.Column > 0 {
		text += fmt.Sprintf("  %s | %s^\n", strings.Repeat(" ", len(number)), strings.Repeat(" ", column-1))
	}
	return text
}

// locate gives every error the line of the document that it points to.
func locate(data []byte, errs []*Error) {
	var lines []string
	for _, e := range errs {
		if e.Line == 0 || e.Text != "" {
			continue
		}
		if lines == nil {
			lines = strings.Split(strings.TrimPrefix(string(data), "\uFEFF"), "\n")
		}
		if e.Line <= len(lines) {
			e.Text = strings.ToValidUTF8(strings.TrimSuffix(lines[e.Line-1], "\r"), "�")
		}
	}
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
