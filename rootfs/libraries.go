package rootfs

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// closure gathers the shared libraries that the ELF files of a tree need.
//
// All of them go into one directory that the loader searches by default, each
// under the name by which it is asked for: no ld.so.cache, no alternatives,
// no link chains, and the loader finds each at its first try. RPATHs of the
// host that lead nowhere in the root are harmless.
type closure struct {
	builder *builder
	loader  *loader
	program *elfObject
	dir     string            // library directory in the root
	taken   map[string]string // library name → host file, symlinks resolved
	own     map[string]bool   // names of ELF files in the standard library and site packages
	seen    map[string]bool   // host files whose needs are known
	missing map[string]bool   // names that the host lacks
}

// addLibraries plans the dynamic loader and every library reachable from the
// interpreter and from extension modules, and proves that each will be found.
func (b *builder) addLibraries(ctx context.Context) error {
	name := b.python.executablePath()
	program, ok, err := readELF(b.python.Executable, "/"+name)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("reading interpreter %s: not an ELF program", b.python.Executable)
	}
	objects, err := b.elfEntries()
	if err != nil {
		return err
	}
	if program.interp == "" { // static: it loads nothing
		return nil
	}
	c, err := b.newClosure(program, objects)
	if err != nil {
		return err
	}
	if err := c.addInterp(); err != nil {
		return err
	}
	for _, e := range objects {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.follow(e.source, c.chainFor(e)); err != nil {
			return err
		}
	}
	if err := c.addOpened(); err != nil {
		return err
	}
	return c.prove()
}

// newClosure prepares the search. The program is read again under its host
// path, for its $ORIGIN.
func (b *builder) newClosure(program *elfObject, objects []*entry) (*closure, error) {
	loader, err := hostLoader(program)
	if err != nil {
		return nil, err
	}
	host, _, err := loader.read(b.python.Executable, b.python.Executable)
	if err != nil {
		return nil, err
	}
	c := &closure{
		builder: b, loader: loader, program: host,
		taken: map[string]string{}, own: map[string]bool{}, seen: map[string]bool{}, missing: map[string]bool{},
	}
	for _, e := range objects {
		c.own[path.Base(e.path)] = true
	}
	c.dir, err = c.libraryDir()
	return c, err
}

// elfEntries lists the files of the tree that are ELF files, the interpreter
// first so that its libraries win over those of packages.
func (b *builder) elfEntries() ([]*entry, error) {
	var objects []*entry
	for _, e := range b.tree.sorted() {
		if e.kind != typeFile || e.source == "" {
			continue
		}
		is, err := isELF(e.source)
		if err != nil {
			return nil, fmt.Errorf("reading /%s: %w", e.path, err)
		}
		if is {
			objects = append(objects, e)
		}
	}
	return objects, nil
}

// libraryDir is where libc lies on the host, a directory that the loader
// searches by default, as a path of the root.
func (c *closure) libraryDir() (string, error) {
	pending, seen := [][]*elfObject{{c.program}}, map[string]bool{}
	for len(pending) > 0 {
		chain := pending[0]
		pending = pending[1:]
		for _, name := range chain[len(chain)-1].needed {
			opened, host, ok := c.loader.find(name, chain)
			if !ok || seen[opened] {
				continue
			}
			if strings.HasPrefix(name, "libc.") {
				return inRoot(path.Dir(opened)), nil
			}
			seen[opened] = true
			if o, ok, err := c.loader.read(host, opened); err == nil && ok {
				pending = append(pending, append(chain[:len(chain):len(chain)], o))
			}
		}
	}
	return "", fmt.Errorf("following shared libraries of %s: it is linked dynamically and this host has no libc for it", c.program.path)
}

// chainFor is the chain of loaders above an ELF file of the tree.
func (c *closure) chainFor(e *entry) []*elfObject {
	if e.source == c.program.path {
		return nil
	}
	return []*elfObject{c.program}
}

// addInterp plans the dynamic loader at the path compiled into the program.
func (c *closure) addInterp() error {
	name := inRoot(c.program.interp)
	if err := c.builder.tree.file(name, c.program.interp); err != nil {
		return err
	}
	c.builder.tree.entries[name].mode = 0o755
	return nil
}

// follow plans what the object in a host file needs, and what that needs.
func (c *closure) follow(host string, above []*elfObject) error {
	if c.seen[host] {
		return nil
	}
	c.seen[host] = true
	o, ok, err := c.loader.read(host, host)
	if err != nil {
		return err
	}
	if !ok || o.class != c.program.class || o.machine != c.program.machine {
		return nil
	}
	chain := append(above[:len(above):len(above)], o)
	for _, name := range o.needed {
		if name == path.Base(c.program.interp) {
			continue
		}
		opened, found, ok := c.loader.find(name, chain)
		if !ok {
			c.lack(o, name)
			continue
		}
		if err := c.add(name, found); err != nil {
			return err
		}
		if err := c.follow(opened, chain); err != nil {
			return err
		}
	}
	return nil
}

// add plans one library under the name by which it is needed.
func (c *closure) add(name, host string) error {
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		return fmt.Errorf("adding library %s: %w", name, err)
	}
	t := c.builder.tree
	switch other, taken := c.taken[name]; {
	case taken && other == real:
		return nil
	case taken:
		return c.conflict(name, other, real)
	}
	c.taken[name] = real
	want := path.Join(c.dir, name)
	if strings.Contains(name, "/") {
		want = inRoot(name)
	}
	at, planned := t.sources[real]
	switch {
	case !planned:
		return t.file(want, host)
	case strings.HasPrefix(at, c.builder.python.stdlibPath()+"/"), at == want:
		return nil // found by the RPATH of the package that brings it
	case path.Dir(at) == path.Dir(want):
		t.symlink(want, path.Base(at))
	default:
		t.symlink(want, "/"+at)
	}
	return nil
}

// conflict reports two different libraries of one name. A process can load
// only one of them, on the host as in the root; the first one is kept.
func (c *closure) conflict(name, kept, other string) error {
	a, err := os.ReadFile(kept)
	if err != nil {
		return fmt.Errorf("comparing libraries: %w", err)
	}
	b, err := os.ReadFile(other)
	if err != nil {
		return fmt.Errorf("comparing libraries: %w", err)
	}
	if !bytes.Equal(a, b) {
		c.builder.leaveOut(other, "another library is already called "+name+": "+kept)
	}
	return nil
}

// lack notes a library that the host does not have, unless it comes with a
// package: that one loads it by its path before it is needed.
func (c *closure) lack(o *elfObject, name string) {
	if c.own[path.Base(name)] || c.missing[o.path+"\x00"+name] {
		return
	}
	c.missing[o.path+"\x00"+name] = true
	c.builder.leaveOut(o.path, "needs "+name+", which this host lacks, and will not load")
}

// addOpened plans libraries that nothing names as needed because libc opens
// them while running: libgcc_s when a thread is cancelled, and before glibc
// 2.34 the name services.
func (c *closure) addOpened() error {
	names, err := c.openedNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		opened, host, ok := c.loader.find(name, []*elfObject{c.program})
		if !ok {
			continue
		}
		if err := c.add(name, host); err != nil {
			return err
		}
		if err := c.follow(opened, []*elfObject{c.program}); err != nil {
			return err
		}
	}
	return nil
}

// openedNames are the names of those libraries.
func (c *closure) openedNames() ([]string, error) {
	names := []string{"libgcc_s.so.1"}
	old, err := c.hasSeparateNameServices()
	if old {
		names = append(names, "libnss_files.so.2", "libnss_dns.so.2")
	}
	return names, err
}

// hasSeparateNameServices says whether libc reads /etc/hosts by a plug-in.
func (c *closure) hasSeparateNameServices() (bool, error) {
	libc, ok := c.taken["libc.so.6"]
	if !ok {
		return false, nil
	}
	file, err := elf.Open(libc)
	if err != nil {
		return false, fmt.Errorf("reading ELF file %s: %w", libc, err)
	}
	defer func() { _ = file.Close() }() // only read
	versions, err := file.DynamicVersions()
	if err != nil {
		return false, fmt.Errorf("reading versions of %s: %w", libc, err)
	}
	for _, v := range versions {
		if v.Name == "GLIBC_2.34" {
			return false, nil
		}
	}
	return true, nil
}
