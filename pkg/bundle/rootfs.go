package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// infoFile is where a root filesystem describes itself, below its top directory.
const infoFile = "usr/lib/psi/rootfs.json"

// maxInfoFile bounds what is read of it, in bytes. It holds five short values.
const maxInfoFile = 64 << 10

// RootfsInfo describes a root filesystem made by `psi-runtime rootfs build`.
type RootfsInfo struct {
	Path         string `json:"-"`             // host directory, as given to Inspect
	Python       string `json:"python"`        // "3.11"
	Interpreter  string `json:"interpreter"`   // absolute, inside the root: "/usr/bin/python3.11"
	Agent        string `json:"agent"`         // absolute, inside the root: "/usr/lib/psi/agent.pyc"
	Digest       string `json:"digest"`        // "sha256:<hex>" of the whole tree
	SitePackages bool   `json:"site_packages"` // whether packages beyond the standard library are in it
}

// Inspect reads what the root filesystem at dir says about itself, and checks
// that the interpreter and the agent it names are there. Nothing is followed out
// of dir. The error of a directory that is no such root says how to make one.
func Inspect(dir string) (RootfsInfo, error) {
	info, err := readInfo(dir)
	if err != nil {
		return RootfsInfo{}, fmt.Errorf("inspecting root filesystem %q: %w (make one with `psi-runtime rootfs build -o DIR`)", dir, err)
	}
	info.Path = dir
	return info, nil
}

func readInfo(dir string) (RootfsInfo, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return RootfsInfo{}, err
	}
	defer func() { _ = root.Close() }() // it was only a way to files
	file, err := root.Open(infoFile)
	if err != nil {
		return RootfsInfo{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxInfoFile+1))
	if err != nil {
		return RootfsInfo{}, err
	}
	if len(data) > maxInfoFile {
		return RootfsInfo{}, fmt.Errorf("%s is larger than %d bytes", infoFile, maxInfoFile)
	}
	var info RootfsInfo
	if err := json.Unmarshal(data, &info); err != nil {
		return RootfsInfo{}, fmt.Errorf("reading %s: %w", infoFile, err)
	}
	if err := info.check(); err != nil {
		return RootfsInfo{}, fmt.Errorf("%s: %w", infoFile, err)
	}
	for _, name := range []string{info.Interpreter, info.Agent} {
		if err := isRegular(root, name); err != nil {
			return RootfsInfo{}, err
		}
	}
	return info, nil
}

// check reports a description that no builder writes.
func (r RootfsInfo) check() error {
	for _, p := range []string{r.Interpreter, r.Agent} {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%q is not an absolute path inside the root", p)
		}
	}
	if r.Python == "" {
		return errors.New("the Python version is missing")
	}
	if hex, ok := strings.CutPrefix(r.Digest, "sha256:"); !ok || !isHex(hex, 64) {
		return fmt.Errorf("digest %q is not sha256:<64 hex digits>", r.Digest)
	}
	return nil
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// isRegular reports an error unless name, absolute inside root, is a regular file.
func isRegular(root *os.Root, name string) error {
	st, err := root.Stat(strings.TrimPrefix(name, "/"))
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return &fs.PathError{Op: "run", Path: name, Err: errors.New("not a regular file")}
	}
	return nil
}
