package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// variables are the values of ${NAME} in the patterns and endpoints of a
// document, given when a guest is spawned. A value is literal text, checked
// before and after it is put in place, so that whoever spawns can fill in what
// the author left open and nothing else: no wildcard, no "..", no second component
// where the author wrote one.
type variables struct {
	values map[string]string
	// sample: there are no values yet; every variable holds one that fits, so
	// that the rest of the document can be checked.
	sample bool
	used   map[string]bool
}

// checkVariables reports given variables that are not valid or that nothing uses.
func (v *variables) check() *Error {
	for _, name := range slices.Sorted(maps.Keys(v.values)) {
		if fault := variableFault(name); fault != "" {
			return &Error{Key: "variables", Value: name, Rule: fault, WayOut: "write a name such as WORKDIR"}
		}
		if v.used[name] {
			continue
		}
		known := slices.Sorted(maps.Keys(v.used))
		wayOut := "the policy uses none"
		if len(known) > 0 {
			wayOut = "it uses " + strings.Join(known, ", ")
		}
		return &Error{Key: "variables", Value: name, Rule: "is not a variable of this policy", WayOut: wayOut, Nearest: nearest(name, known)}
	}
	return nil
}

func variableFault(name string) string {
	if name == "" || len(name) > 64 {
		return "a variable's name has 1 to 64 characters"
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'A' || c > 'Z') && c != '_' && (i == 0 || c < '0' || c > '9') {
			return "is not the name of a variable: capital letters, digits and _ are"
		}
	}
	return ""
}

// inPattern replaces the variables of a pattern. One at its beginning holds an
// absolute path, one elsewhere a part of one component.
func (v *variables) inPattern(pattern string) (string, *Error) {
	return v.replace(pattern, func(at int, value string) (string, string) {
		switch {
		case strings.ContainsAny(value, "*?["):
			return "holds a wildcard", "give it literal text: wildcards stand in the policy"
		case at == 0 && (!strings.HasPrefix(value, "/") || value == "/"):
			return "is not an absolute path below /", "give it one such as /srv/job-7"
		case at == 0 && strings.HasSuffix(value, "/"):
			return "ends in a /", "give it without"
		case at > 0 && strings.Contains(value, "/"):
			return "holds a /", "it stands for a part of one name here: give it without"
		}
		return "", ""
	})
}

// inEndpoint replaces the variables of an endpoint: addresses, names and ports,
// never blocks, wildcards or ranges of ports.
func (v *variables) inEndpoint(endpoint string) (string, *Error) {
	return v.replace(endpoint, func(at int, value string) (string, string) {
		port := value[strings.LastIndexByte(value, ':')+1:]
		if strings.Contains(port, "-") && (len(port) < len(value) || at > 0 && strings.IndexByte(":-", endpoint[at-1]) >= 0) {
			return "holds a range of ports", "write the range in the policy, such as ${FIRST}-${LAST}, and give it single ports"
		}
		for _, c := range []byte(value) {
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
			if !letter && strings.IndexByte("._-:", c) < 0 {
				return fmt.Sprintf("holds %s", quote(string(c))), "give it a name, an address or a port"
			}
		}
		return "", ""
	})
}

// replace puts the values in place. fault judges the value of a variable at an
// offset of text.
func (v *variables) replace(text string, fault func(at int, value string) (rule, wayOut string)) (string, *Error) {
	var b strings.Builder
	for at := 0; ; {
		start := strings.Index(text[at:], "${")
		if start < 0 {
			b.WriteString(text[at:])
			return b.String(), nil
		}
		start += at
		end := strings.IndexByte(text[start:], '}')
		if end < 0 {
			return "", &Error{Value: text, Rule: `has a "${" that nothing closes`, WayOut: "write ${NAME}, or [$]{ for the characters themselves"}
		}
		name := text[start+2 : start+end]
		if rule := variableFault(name); rule != "" {
			return "", &Error{Value: name, Rule: rule, WayOut: "write ${NAME} such as ${WORKDIR}, or [$]{ for the characters themselves"}
		}
		v.used[name] = true
		value, given := v.values[name]
		switch {
		case v.sample:
			value = sampleValue(text, start, start+end+1)
		case !given:
			return "", &Error{Value: text, Rule: fmt.Sprintf("needs the variable %s", name), WayOut: "give it a value where the guest is spawned"}
		case value == "" || !isText(value) || strings.IndexByte(value, 0) >= 0:
			return "", &Error{Value: value, Rule: fmt.Sprintf("the value of %s is empty or not text", name), WayOut: "give it another"}
		default:
			if rule, wayOut := fault(start, value); rule != "" {
				return "", &Error{Value: value, Rule: fmt.Sprintf("the value of %s %s", name, rule), WayOut: wayOut}
			}
		}
		b.WriteString(text[at:start] + value)
		at = start + end + 1
	}
}

// sampleValue returns a value that fits at text[start:end], whatever the rest.
func sampleValue(text string, start, end int) string {
	switch {
	case start > 0 && text[start-1] == ':':
		return "1" // a port
	case start == 0 && end == len(text):
		return "/srv/variable"
	case start == 0 && text[end] == '/':
		return "/srv/variable"
	case start == 0 && text[end] != ':':
		return "/srv/variable"
	}
	return "variable"
}
