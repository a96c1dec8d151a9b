package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// namedDir holds the policies that the administrator of a machine has named.
const namedDir = "/etc/psi/policies"

// extensions of policy files, in the order in which they are looked for.
func extensions() []string { return []string{".yml", ".yaml", ".json"} }

// hasExtension reports whether a name ends as policy files do.
func hasExtension(name string) bool {
	return slices.ContainsFunc(extensions(), func(e string) bool { return strings.HasSuffix(name, e) })
}

// SplitSandbox takes the name of a sandbox off a text such as "policies.yml#job".
// sandbox is "" when there is none; what follows a "#" is one unless it holds a
// slash or ends like a file.
func SplitSandbox(text string) (nameOrPath, sandbox string) {
	at := strings.LastIndexByte(text, '#')
	if at <= 0 || checkSandboxName(text[at+1:]) != nil {
		return text, ""
	}
	return text[:at], text[at+1:]
}

// IsPath reports whether [Load] takes text for a file rather than for a name:
// it holds a slash or ends in .yml, .yaml or .json, before a "#SANDBOX".
func IsPath(text string) bool {
	text, _ = SplitSandbox(text)
	return strings.Contains(text, "/") || hasExtension(text)
}

// Load returns the policy in a file, or the one of a name (see [IsPath] and
// [Lookup]). In a file with several sandboxes "#SANDBOX" after the path chooses
// one. It opens the file with the permissions of this process: a process that
// serves other users calls Lookup and has them send the content of files.
func Load(nameOrPath string) (Policy, error) { return LoadVariables(nameOrPath, nil) }

// LoadVariables is [Load] for a policy with variables; values are by name.
func LoadVariables(nameOrPath string, values map[string]string) (Policy, error) {
	data, source, sandbox, err := Open(nameOrPath)
	if err != nil {
		return Policy{}, err
	}
	return ParseSandbox(data, source, Choice{Sandbox: sandbox, Variables: values})
}

// Open returns the document behind what [Load] takes, what to call it in
// messages, and the sandbox that was chosen; "" when none was.
func Open(nameOrPath string) (data []byte, source, sandbox string, err error) {
	file, sandbox := SplitSandbox(nameOrPath)
	if !IsPath(nameOrPath) {
		data, source, err = find(namedDir, file)
		return data, source, sandbox, err
	}
	if data, err = readFile(file); err != nil {
		return nil, "", "", fmt.Errorf("loading policy: %w", err)
	}
	return data, file, sandbox, nil
}

// Lookup returns the policy of a name: from /etc/psi/policies/NAME.yml, .yaml or
// .json, else built in. It never takes the name for a path; "NAME#SANDBOX" chooses
// one of several sandboxes. A file that is there and cannot be read is an error,
// not a reason to look further.
func Lookup(name string) (Policy, error) { return lookupIn(namedDir, name) }

func lookupIn(dir, name string) (Policy, error) {
	name, sandbox := SplitSandbox(name)
	data, source, err := find(dir, name)
	if err != nil {
		return Policy{}, err
	}
	return ParseSandbox(data, source, Choice{Sandbox: sandbox})
}

// Find returns the document that [Lookup] reads, what to call it in messages, and the
// sandbox that was chosen; "" when none was.
func Find(name string) (data []byte, source, sandbox string, err error) {
	name, sandbox = SplitSandbox(name)
	data, source, err = find(namedDir, name)
	return data, source, sandbox, err
}

// find returns the document of a name.
func find(dir, name string) (data []byte, source string, err error) {
	if err := checkName(name); err != nil {
		return nil, "", err
	}
	var found []string
	for _, extension := range extensions() {
		path := filepath.Join(dir, name+extension)
		switch _, err := os.Stat(path); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			return nil, "", fmt.Errorf("loading policy %q: %w", name, err)
		}
	}
	switch len(found) {
	case 0:
		data, err := builtinData(name)
		return data, builtinSource(name), err
	case 1:
		if data, err = readFile(found[0]); err != nil {
			return nil, "", fmt.Errorf("loading policy: %w", err)
		}
		return data, found[0], nil
	}
	return nil, "", &Error{Value: name, Rule: "names several policies: " + strings.Join(found, ", "), WayOut: "remove all but one"}
}

// checkName reports what cannot be the name of a policy. Above all it keeps
// names from being paths.
func checkName(name string) *Error {
	bad := func(rule string) *Error {
		return &Error{Value: name, Rule: rule, WayOut: "a name is 1 to 64 of the characters A-Z a-z 0-9 . _ -, beginning with a letter or digit"}
	}
	if name == "" {
		return bad("an empty policy name")
	}
	if len(name) > 64 {
		return bad("is too long for the name of a policy")
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return bad("is not the name of a policy")
		}
	}
	return nil
}

// readFile reads a regular file, no more of it than Parse accepts and one byte.
// Opening must not wait for the other end of a FIFO.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: give a YAML or JSON file", path)
	}
	return io.ReadAll(io.LimitReader(f, maxDocument+1))
}
