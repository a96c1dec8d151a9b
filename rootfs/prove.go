package rootfs

import (
	"fmt"
	"path"
	"slices"
)

// prove searches every library again, this time as the loader inside the root
// will. What the host could resolve, the root must resolve as well.
func (c *closure) prove() error {
	t := c.builder.tree
	inside := rootLoader(t, c.program, "/"+c.dir)
	program, _, err := inside.read(c.builder.python.Executable, "/"+c.builder.python.executablePath())
	if err != nil {
		return err
	}
	objects, err := c.builder.elfEntries()
	if err != nil {
		return err
	}
	for _, e := range objects {
		o, ok, err := inside.read(e.source, "/"+e.path)
		if err != nil {
			return err
		}
		if !ok || o.class != program.class || o.machine != program.machine {
			continue
		}
		for _, name := range o.needed {
			if name == path.Base(program.interp) || c.own[path.Base(name)] || c.missing[e.source+"\x00"+name] {
				continue
			}
			opened, _, ok := inside.find(name, []*elfObject{program, o})
			if !ok {
				return fmt.Errorf("following shared libraries: /%s needs %s, and the loader would not find it in the root: this is a bug of psi, please report it with the output of \"ldd %s\"",
					e.path, name, e.source)
			}
			c.builder.needLibrary(e.path, opened)
		}
	}
	return c.proveOpened(inside, program)
}

// proveOpened notes what the program needs without being linked with it: its loader, and
// the libraries of addOpened.
func (c *closure) proveOpened(inside *loader, program *elfObject) error {
	name := c.builder.python.executablePath()
	c.builder.needLibrary(name, program.interp)
	opened, err := c.openedNames()
	if err != nil {
		return err
	}
	for _, library := range opened {
		if found, _, ok := inside.find(library, []*elfObject{program}); ok {
			c.builder.needLibrary(name, found)
		}
	}
	return nil
}

// needLibrary notes for the module graph that an object needs a shared library: the file,
// and the name by which it is opened where that is a link.
func (b *builder) needLibrary(object, opened string) {
	for _, name := range []string{inRoot(opened), b.resolved(opened)} {
		if _, planned := b.tree.entries[name]; planned && !slices.Contains(b.needs[object], name) {
			b.needs[object] = append(b.needs[object], name)
		}
	}
}

// resolved is where a path of the root leads, "" nowhere.
func (b *builder) resolved(name string) string {
	if e, ok := b.tree.resolve(name); ok {
		return e.path
	}
	return ""
}
