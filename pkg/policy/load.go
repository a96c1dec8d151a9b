package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// namedDir holds the policies that the administrator of a machine has named.
const namedDir = "/etc/psi/policies"

// extensions of policy files, in the order in which they are looked for.
func extensions() []string { return []string{".yml", ".yaml", ".json"} }

// IsPath reports whether [Load] takes text for a file rather than for a name:
// it holds a slash or ends in .yml, .yaml or .json.
func IsPath(text string) bool {
	if strings.Contains(text, "/") {
		return true
	}
	for _, extension := range extensions() {
		if strings.HasSuffix(text, extension) {
			return true
		}
	}
	return false
}

// Load returns the policy in a file, or the one of a name (see [IsPath] and
// [Lookup]). It opens the file with the permissions of this process: a process
// that serves other users calls Lookup and has them send the content of files.
func Load(nameOrPath string) (Policy, error) {
	if IsPath(nameOrPath) {
		return loadFile(nameOrPath)
	}
	return Lookup(nameOrPath)
}

// Lookup returns the policy of a name: from /etc/psi/policies/NAME.yml, .yaml or
// .json, else built in. It never takes the name for a path. A file that is there
// and cannot be read is an error, not a reason to look further.
func Lookup(name string) (Policy, error) { return lookupIn(namedDir, name) }

func lookupIn(dir, name string) (Policy, error) {
	if err := checkName(name); err != nil {
		return Policy{}, err
	}
	var found []string
	for _, extension := range extensions() {
		path := filepath.Join(dir, name+extension)
		switch _, err := os.Stat(path); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			return Policy{}, fmt.Errorf("loading policy %q: %w", name, err)
		}
	}
	switch len(found) {
	case 0:
		return Named(name)
	case 1:
		return loadFile(found[0])
	}
	return Policy{}, &Error{Value: name, Rule: "names several policies: " + strings.Join(found, ", "), WayOut: "remove all but one"}
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

// loadFile reads and parses one file.
func loadFile(path string) (Policy, error) {
	data, err := readFile(path)
	if err != nil {
		return Policy{}, fmt.Errorf("loading policy: %w", err)
	}
	return Parse(data, path)
}

// readFile reads a regular file, no more of it than Parse accepts and one byte.
// Opening must not wait for the other end of a FIFO.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: give a YAML or JSON file", path)
	}
	return io.ReadAll(io.LimitReader(f, maxDocument+1))
}
