package rootfs

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// copier plans a host directory below a directory of the root.
//
// Links that stay inside the directory are kept; all others become what they
// point to, because their targets do not exist in the root. Bytecode is not
// copied but made anew, unless it has no source. Devices, FIFOs and sockets
// are left out.
type copier struct {
	builder *builder
	from    string // host directory
	to      string // path in the root
	// skip says whether a path relative to from is left out, and why.
	skip func(rel string) (reason string, skip bool)

	links []string // kept links, by their path relative to from
	above []string // real paths of the directories being walked, against cycles
}

func (b *builder) copier(from, to string) *copier {
	return &copier{
		builder: b, from: filepath.Clean(from), to: to,
		skip: func(string) (string, bool) { return "", false },
	}
}

// run plans the whole directory.
func (c *copier) run() error {
	if err := c.walk(""); err != nil {
		return fmt.Errorf("copying %s: %w", c.from, err)
	}
	// A kept link may point to something that was left out. It then becomes
	// a copy as well.
	for _, rel := range c.links {
		if _, ok := c.builder.tree.resolve(path.Join(c.to, rel)); ok {
			continue
		}
		delete(c.builder.tree.entries, path.Join(c.to, rel))
		if err := c.follow(rel); err != nil {
			return fmt.Errorf("copying %s: %w", c.from, err)
		}
	}
	return nil
}

// walk plans the directory at rel.
func (c *copier) walk(rel string) error {
	dir := filepath.Join(c.from, rel)
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if slices.Contains(c.above, real) {
		c.leaveOut(rel, "link to a directory above itself")
		return nil
	}
	c.above = append(c.above, real)
	defer func() { c.above = c.above[:len(c.above)-1] }()

	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	c.builder.tree.dir(path.Join(c.to, rel), 0o755)
	for _, d := range list {
		if err := c.add(path.Join(rel, d.Name()), d); err != nil {
			return err
		}
	}
	return nil
}

// add plans one directory entry.
func (c *copier) add(rel string, d fs.DirEntry) error {
	if c.isStaleBytecode(rel, d) {
		return nil
	}
	if reason, skip := c.skip(rel); skip {
		c.leaveOut(rel, reason)
		return nil
	}
	switch {
	case d.IsDir():
		return c.walk(rel)
	case d.Type().IsRegular():
		return c.file(rel)
	case d.Type()&fs.ModeSymlink != 0:
		return c.link(rel)
	}
	c.leaveOut(rel, "neither file, directory nor link")
	return nil
}

// isStaleBytecode says whether rel is bytecode that the builder makes anew.
func (c *copier) isStaleBytecode(rel string, d fs.DirEntry) bool {
	if d.Name() == "__pycache__" {
		return true
	}
	source, ok := strings.CutSuffix(rel, ".pyc")
	if !ok {
		return false
	}
	_, err := os.Stat(filepath.Join(c.from, source+".py"))
	return err == nil
}

// link plans a symbolic link, as itself or as what it points to. Links to
// sources become copies, since bytecode is looked up by the link's name.
func (c *copier) link(rel string) error {
	target, err := os.Readlink(filepath.Join(c.from, rel))
	if err != nil {
		return err
	}
	inside := !path.IsAbs(target) && filepath.IsLocal(path.Join(path.Dir(rel), target))
	if !inside || strings.HasSuffix(rel, ".py") {
		return c.follow(rel)
	}
	c.builder.tree.symlink(path.Join(c.to, rel), target)
	c.links = append(c.links, rel)
	return nil
}

// follow plans what a link points to.
func (c *copier) follow(rel string) error {
	info, err := os.Stat(filepath.Join(c.from, rel))
	switch {
	case err != nil:
		c.leaveOut(rel, "link to nothing")
		return nil
	case info.IsDir():
		return c.walk(rel)
	case info.Mode().IsRegular():
		return c.file(rel)
	}
	c.leaveOut(rel, "link to neither a file nor a directory")
	return nil
}

func (c *copier) file(rel string) error {
	return c.builder.tree.file(path.Join(c.to, rel), filepath.Join(c.from, rel))
}

func (c *copier) leaveOut(rel, reason string) {
	c.builder.leaveOut("/"+path.Join(c.to, rel), reason)
}

// leaveOut notes for the report that name is missing or cannot work.
func (b *builder) leaveOut(name, reason string) {
	b.leftOut = append(b.leftOut, name+": "+reason)
}
