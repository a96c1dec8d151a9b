package policy

import (
	"embed"
	"strings"
)

// builtinFiles holds the built-in policies, one file each. They are ordinary
// documents: copy one to /etc/psi/policies to make a variant of it.
//
//go:embed builtin/*.yml
var builtinFiles embed.FS

// Names returns the names of the built-in policies, the default one first:
//
//	defaults         what holds where nothing is said: 256 MiB, one processor, every module
//	stdlib.readonly  the modules of the standard library, and nothing can be written
//	readonly-fs      as defaults; host files may be added to read, none to write
//	compute-only     modules that compute on values, small limits, nothing can be written
//	ml-inference     memory, processors and threads for numpy and its like
//	web-scraper      modules to fetch and take apart web pages; the caller adds the endpoints
//	pypi-install     memory, time and traffic for pip; the caller adds the index and the directory
//	agent            a program with commands in a workspace; the caller adds it, and the hosts
//
// None of them opens a host file or an endpoint.
func Names() []string {
	return []string{"defaults", "stdlib.readonly", "readonly-fs", "compute-only", "ml-inference", "web-scraper", "pypi-install", "agent"}
}

// Named returns a built-in policy. An unknown name is an [*Error] that lists the
// known ones.
func Named(name string) (Policy, error) {
	data, err := builtinData(name)
	if err != nil {
		return Policy{}, err
	}
	return Parse(data, builtinSource(name))
}

// builtinSource is what a built-in document is called in messages.
func builtinSource(name string) string { return "built-in policy " + name }

// Describe says in a few words what a built-in policy is for. An unknown name is
// an [*Error] that lists the known ones.
func Describe(name string) (string, error) {
	data, err := builtinData(name)
	if err != nil {
		return "", err
	}
	var text []string
	for line := range strings.Lines(string(data)) {
		comment, found := strings.CutPrefix(line, "# ")
		if !found {
			break
		}
		text = append(text, strings.TrimSpace(comment))
	}
	return strings.Join(text, " "), nil
}

func builtinData(name string) ([]byte, error) {
	for _, known := range Names() {
		if name == known {
			return builtinFiles.ReadFile("builtin/" + name + ".yml")
		}
	}
	return nil, &Error{Value: name, Rule: "is not the name of a policy",
		WayOut:  "the built-in ones are " + strings.Join(Names(), ", ") + "; others are files in " + namedDir + " or paths that end in .yml, .yaml or .json",
		Nearest: nearest(name, Names())}
}
