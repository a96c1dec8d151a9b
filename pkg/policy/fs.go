package policy

import (
	"strings"
	"unicode/utf8"
)

// FSMode is what an fs rule does with the host paths that its pattern matches.
type FSMode string

// The modes of an [FSRule].
const (
	Read  FSMode = "read"  // the guest may read and list
	Write FSMode = "write" // the guest may read, list, write, create and delete
	Deny  FSMode = "deny"  // taken away from every other rule, whatever their order
)

// FSRule opens host paths to a guest, at the same paths, or takes them away.
// Pattern is an absolute, clean path or glob, see [Match]. Without wildcards it
// names one file, or one directory with everything below it.
type FSRule struct {
	Mode    FSMode
	Pattern string
}

// check reports a rule that no policy may hold.
func (r FSRule) check() *Error {
	if r.Mode != Read && r.Mode != Write && r.Mode != Deny {
		return &Error{Value: string(r.Mode), Rule: "is not a mode of an fs rule", WayOut: "write read, write or deny",
			Nearest: nearest(string(r.Mode), fsModes())}
	}
	if err := checkPattern(r.Pattern); err != nil {
		return err
	}
	return checkPlace(r)
}

func fsModes() []string { return []string{string(Read), string(Write), string(Deny)} }

// isText reports text that a document can carry: UTF-8, without the replacement
// character that decoders leave in the place of what was not text.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError)
}

// QuotePattern writes a path as a pattern that matches it: a path without
// wildcards in its name stays as it is, and so means a directory with everything
// below it.
func QuotePattern(path string) string {
	return strings.NewReplacer("*", "[*]", "?", "[?]", "[", "[[]", "${", "[$]{").Replace(path)
}
