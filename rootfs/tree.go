package rootfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// entryType is the type of a path in the root: these three and no other, so
// no root can hold a device, a FIFO or a socket.
type entryType byte

const (
	typeDir  entryType = 'd'
	typeFile entryType = 'f'
	typeLink entryType = 'l'
)

// entry is one path of the planned root. The content of a file is either
// data, or the host file source, which is read when the root is written.
type entry struct {
	path   string
	kind   entryType
	mode   fs.FileMode // permission bits, 0 for links
	link   string      // target of a link
	source string
	data   []byte

	size int64             // of a file; set by measure
	hash [sha256.Size]byte // of a file's content; set by measure
}

// tree is a root filesystem in planning: entries by slash-separated path
// relative to the root, without "." and "..".
type tree struct {
	entries map[string]*entry
	sources map[string]string // host file (symlinks resolved) → path in the root
}

func newTree() *tree {
	return &tree{entries: map[string]*entry{}, sources: map[string]string{}}
}

// put adds or replaces an entry and makes the directories above it.
func (t *tree) put(e *entry) {
	for dir := path.Dir(e.path); dir != "." && t.entries[dir] == nil; dir = path.Dir(dir) {
		t.entries[dir] = &entry{path: dir, kind: typeDir, mode: 0o755}
	}
	t.entries[e.path] = e
}

func (t *tree) dir(name string, mode fs.FileMode) {
	t.put(&entry{path: name, kind: typeDir, mode: mode})
}

func (t *tree) bytes(name string, data []byte) {
	t.put(&entry{path: name, kind: typeFile, mode: 0o644, data: data})
}

func (t *tree) symlink(name, target string) {
	t.put(&entry{path: name, kind: typeLink, link: target})
}

// file adds a host file. Only its owner's execute bit is carried over.
func (t *tree) file(name, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("adding /%s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("adding /%s: %s is not a regular file: remove it from the directory given", name, source)
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	t.put(&entry{path: name, kind: typeFile, mode: mode, source: source})
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return fmt.Errorf("adding /%s: %w", name, err)
	}
	if _, taken := t.sources[real]; !taken {
		t.sources[real] = name
	}
	return nil
}

// sorted returns all entries in the order of their paths, which places a
// directory before what it contains.
func (t *tree) sorted() []*entry {
	all := make([]*entry, 0, len(t.entries))
	for _, e := range t.entries {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.path, b.path) })
	return all
}

// maxLinks bounds the links followed by resolve, as the kernel's walk does.
const maxLinks = 40

// resolve follows the links on a path of the planned root, as a process
// inside it would, and returns the file or directory found.
func (t *tree) resolve(name string) (*entry, bool) {
	todo := strings.Split(name, "/")
	at, links := "", 0
	for len(todo) > 0 {
		component := todo[0]
		todo = todo[1:]
		switch component {
		case "", ".":
			continue
		case "..":
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		next := path.Join(at, component)
		e := t.entries[next]
		if e == nil {
			return nil, false
		}
		if e.kind != typeLink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return nil, false
		}
		if path.IsAbs(e.link) {
			at = ""
		}
		todo = append(strings.Split(e.link, "/"), todo...)
	}
	e := t.entries[at]
	return e, e != nil
}

func (e *entry) open() (io.ReadCloser, error) {
	if e.source == "" {
		return io.NopCloser(bytes.NewReader(e.data)), nil
	}
	return os.Open(e.source)
}

// measure reads a file's content once for its size and hash.
func (e *entry) measure() error {
	if e.kind != typeFile {
		return nil
	}
	content, err := e.open()
	if err != nil {
		return fmt.Errorf("reading /%s: %w", e.path, err)
	}
	defer content.Close()
	hash := sha256.New()
	if e.size, err = io.Copy(hash, content); err != nil {
		return fmt.Errorf("reading /%s: %w", e.path, err)
	}
	hash.Sum(e.hash[:0])
	return nil
}

// errChanged: a host file is not what it was when the digest was taken.
var errChanged = errors.New("the file changed while the root was being built: build again")

// copyTo writes a file's content to w and makes sure that it is the content
// the digest speaks of.
func (e *entry) copyTo(w io.Writer) error {
	content, err := e.open()
	if err != nil {
		return fmt.Errorf("reading /%s: %w", e.path, err)
	}
	defer content.Close()
	hash := sha256.New()
	// Never more than was measured, so that a tar entry cannot overflow what
	// its header says.
	n, err := io.Copy(io.MultiWriter(w, hash), io.LimitReader(content, e.size))
	if err != nil {
		return fmt.Errorf("copying /%s: %w", e.path, err)
	}
	if n != e.size || !bytes.Equal(hash.Sum(nil), e.hash[:]) {
		return fmt.Errorf("copying /%s from %s: %w", e.path, e.source, errChanged)
	}
	return nil
}
