package policy

import (
	"fmt"
	"strings"
)

// maxPattern bounds a pattern, in bytes: no path that the kernel resolves is longer.
const maxPattern = 4095

// Match reports whether pattern matches path; both are absolute and clean. It
// is the reference meaning of a pattern:
//
//	c       the byte c
//	?       one byte but /
//	*       any number of bytes but /, a leading dot included
//	[a-z_]  one byte of the class; [!…] and [^…] one byte outside it; never /
//	**      a whole component: any number of components, none included
//
// There is no escape: [*] is a star. Names are bytes, not characters: "é" takes
// two "?". So "/a/**" matches "/a" and all below it, "/a/**/*.csv" matches
// "/a/x.csv" and "/a/b/c/x.csv". A pattern or path that is not absolute, and a
// pattern with a broken class, match nothing. The time is bounded by the product
// of the two lengths, whatever the pattern; nothing is allocated.
func Match(pattern, path string) bool {
	if !strings.HasPrefix(pattern, "/") || !strings.HasPrefix(path, "/") {
		return false
	}
	// The offsets of the next component, or len+1 at the end.
	p, s := 1, 1
	if path == "/" {
		s = 2
	}
	if pattern == "/" {
		p = 2
	}
	// After a "**", where to go back to. Components are matched one by one
	// without memory, so the last "**" is the only one worth going back to.
	backP, backS := -1, 0
	for {
		var want string
		after := p
		if p <= len(pattern) {
			want, after = component(pattern, p)
			if want == "**" {
				p, backP, backS = after, after, s
				continue
			}
		}
		if s > len(path) {
			return p > len(pattern)
		}
		have, next := component(path, s)
		if p <= len(pattern) && matchComponent(want, have) {
			p, s = after, next
			continue
		}
		if backP < 0 {
			return false
		}
		_, backS = component(path, backS)
		p, s = backP, backS
	}
}

// component returns the component of s at from, and the offset of the next one.
func component(s string, from int) (text string, next int) {
	if i := strings.IndexByte(s[from:], '/'); i >= 0 {
		return s[from : from+i], from + i + 1
	}
	return s[from:], len(s) + 1
}

// matchComponent matches one name, going back only to the last star.
func matchComponent(pattern, name string) bool {
	p, n, backP, backN := 0, 0, -1, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			p++
			backP, backN = p, n
			continue
		}
		if p < len(pattern) {
			if size, ok := matchByte(pattern[p:], name[n]); ok {
				p += size
				n++
				continue
			}
		}
		if backP < 0 {
			return false
		}
		backN++
		p, n = backP, backN
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchByte matches one byte with the element that pattern begins with, and
// returns the size of that element. A broken class matches nothing.
func matchByte(pattern string, c byte) (size int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		class, size := cutClass(pattern)
		return size, size > 0 && class.has(c)
	}
	return 1, pattern[0] == c
}

// class is the inside of brackets: "a-z_", negated or not.
type class struct {
	set     string
	negated bool
}

// cutClass returns the class that pattern begins with and its size including
// the brackets; size is 0 when no bracket closes it. A "]" that comes first
// belongs to the class.
func cutClass(pattern string) (c class, size int) {
	start := 1
	if len(pattern) > 1 && (pattern[1] == '!' || pattern[1] == '^') {
		c.negated = true
		start = 2
	}
	if start >= len(pattern) {
		return class{}, 0
	}
	end := strings.IndexByte(pattern[start+1:], ']')
	if end < 0 {
		return class{}, 0
	}
	end += start + 1
	c.set = pattern[start:end]
	return c, end + 1
}

// has reports whether the byte is in the class. A "-" that comes first or last
// is itself.
func (c class) has(b byte) bool {
	found := false
	for i := 0; i < len(c.set); i++ {
		low, high := c.set[i], c.set[i]
		if i+2 < len(c.set) && c.set[i+1] == '-' {
			high = c.set[i+2]
			i += 2
		}
		if low <= b && b <= high {
			found = true
			break
		}
	}
	return found != c.negated
}

// LiteralDir returns the part of a pattern that needs no matching: the pattern
// itself when it has no wildcard, else the directory above the first component
// with one ("/" when that is the first). A class counts as a wildcard.
func LiteralDir(pattern string) string {
	wild := strings.IndexAny(pattern, "*?[")
	if wild < 0 {
		return pattern
	}
	slash := strings.LastIndexByte(pattern[:wild], '/')
	if slash <= 0 {
		return "/"
	}
	return pattern[:slash]
}

// checkPattern reports a pattern that is not absolute, not clean or not
// understood. Where it may point is checkPlace's matter.
func checkPattern(pattern string) *Error {
	bad := func(rule, wayOut string) *Error {
		return &Error{Value: pattern, Rule: rule, WayOut: wayOut}
	}
	switch {
	case pattern == "":
		return bad("an empty pattern", "write an absolute path, such as /srv/data/*.csv")
	case pattern[0] != '/':
		return bad("is not absolute", "begin it with /, such as /srv/data/*.csv")
	case len(pattern) > maxPattern:
		return bad(fmt.Sprintf("is longer than %d bytes", maxPattern), "no path is that long: shorten it")
	case strings.IndexByte(pattern, 0) >= 0:
		return bad("holds a NUL byte", "no path has one: remove it")
	case !isText(pattern):
		return bad("is not UTF-8 text", "match the odd bytes with ? or *")
	case strings.Contains(pattern, "${"):
		return bad(`holds "${", which begins a variable`, "variables have values only in a document; write [$]{ for the characters themselves")
	case pattern == "/":
		return nil // clean; checkPlace refuses it
	}
	for at := 1; at <= len(pattern); {
		name, next := component(pattern, at)
		if rule, wayOut := componentFault(name); rule != "" {
			return bad(rule, wayOut)
		}
		at = next
	}
	return nil
}

// componentFault says what is wrong with one component of a pattern.
func componentFault(name string) (rule, wayOut string) {
	switch name {
	case "":
		return "has an empty component", "remove the doubled or trailing /"
	case ".", "..":
		return fmt.Sprintf("has a %q component", name), "write the path that it leads to"
	case "**":
		return "", ""
	}
	if strings.Contains(name, "**") {
		return `has "**" beside other characters`, `"**" stands alone between slashes, "*" within a name: write /srv/**/*.csv`
	}
	for i := 0; i < len(name); {
		if name[i] != '[' {
			i++
			continue
		}
		c, size := cutClass(name[i:])
		if size == 0 {
			return `has a "[" that nothing closes`, `close it with "]" before the next "/", or write [[] for the character itself`
		}
		if rule, wayOut := classFault(c.set); rule != "" {
			return rule, wayOut
		}
		i += size
	}
	return "", ""
}

// classFault says what is wrong with the inside of a class.
func classFault(set string) (rule, wayOut string) {
	if strings.HasPrefix(set, "[:") || strings.HasPrefix(set, "[.") || strings.HasPrefix(set, "[=") {
		return "has a named class", "named classes are not supported: write the range, such as [a-z]"
	}
	for i := range len(set) {
		if set[i] >= 0x80 {
			return "has a class with a character that is not ASCII", "a class stands for one byte: use * or one rule per name"
		}
	}
	for i := 0; i+2 < len(set); i++ {
		if set[i+1] != '-' {
			continue
		}
		if set[i] > set[i+2] {
			return fmt.Sprintf("has the empty range %q", set[i:i+3]), "write the lower end first"
		}
		i += 2
	}
	return "", ""
}
