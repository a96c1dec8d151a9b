package policy

import (
	"slices"
	"strings"
)

// checkImport reports what is not the dotted name of a module.
func checkImport(name string) *Error {
	bad := func(rule, wayOut string) *Error { return &Error{Value: name, Rule: rule, WayOut: wayOut} }
	switch {
	case name == "":
		return bad("an empty module name", "write a name such as math or xml.etree")
	case len(name) > 255:
		return bad("is longer than 255 characters", "no module has such a name: shorten it")
	case strings.Contains(name, "*"):
		return bad("has a wildcard, which is not supported", "a package's name covers the modules in it: write only that")
	}
	for part := range strings.SplitSeq(name, ".") {
		if !isIdentifier(part) {
			return bad("is not the name of a Python module", "write ASCII identifiers separated by dots, such as math or xml.etree")
		}
	}
	return nil
}

// isIdentifier reports ASCII identifiers. Python has others, but compares them
// in a normal form, so that one name could be written in many ways.
func isIdentifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// intersectImports returns the modules that both lists cover, sorted. A name
// covers itself and what is below it: xml and xml.etree have xml.etree in common.
func intersectImports(a, b []string) []string {
	common := append(coveredBy(a, b), coveredBy(b, a)...)
	slices.Sort(common)
	return slices.Compact(common)
}

// coveredBy returns the names of list that are in cover, or below a name in it.
func coveredBy(list, cover []string) []string {
	set := make(map[string]bool, len(cover))
	for _, name := range cover {
		set[name] = true
	}
	var covered []string
	for _, name := range list {
		for end := 1; end <= len(name); end++ {
			if (end == len(name) || name[end] == '.') && set[name[:end]] {
				covered = append(covered, name)
				break
			}
		}
	}
	return covered
}

// DecideImport reports whether guest code may import a module, and by which
// entry of the list; by is "" when every module may be imported, or none of the
// entries covers it.
func (p Policy) DecideImport(module string) (allowed bool, by string) {
	if !p.importsLimited {
		return true, ""
	}
	for _, name := range p.imports {
		if len(coveredBy([]string{module}, []string{name})) > 0 {
			return true, name
		}
	}
	return false, ""
}
