package rootfs

import (
	"fmt"
	"path"
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
			if _, _, ok := inside.find(name, []*elfObject{program, o}); !ok {
				return fmt.Errorf("following shared libraries: /%s needs %s, and the loader would not find it in the root: this is a bug of psi, please report it with the output of \"ldd %s\"",
					e.path, name, e.source)
			}
		}
	}
	return nil
}
