package container

import (
	"os"
	"slices"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/psi-runtime/psi/internal/confine"
)

// wrap has the process start as psi-init, whose file is the last of its descriptors,
// if there is something to put on. The caller closes the file, which may be nil, once
// the process has been started.
func wrap(p *libcontainer.Process, c *confine.Confinement) (*os.File, error) {
	if c == nil {
		return nil, nil
	}
	args, f, err := c.Wrap(p.Args, 3+len(p.ExtraFiles))
	if err != nil {
		return nil, err
	}
	p.Args = args
	p.ExtraFiles = append(slices.Clone(p.ExtraFiles), f)
	return f, nil
}

// takePython takes psi's own filter out of the specification of a guest: it is compiled
// already, psi-init puts it on, and libcontainer would compile it anew.
func (c *Container) takePython() {
	if c.spec.Linux == nil || !confine.IsPython(c.spec.Linux.Seccomp) || !c.spec.Process.NoNewPrivileges {
		return
	}
	spec, linux := *c.spec, *c.spec.Linux
	linux.Seccomp = nil
	spec.Linux, c.spec = &linux, &spec
	c.entry.Python = true
}

// confinement is what a process of the container puts on: what the caller says, and
// last, because it forbids much, what takePython took.
func (c *Container) confinement(said *confine.Confinement) *confine.Confinement {
	if !c.entry.Python {
		return said
	}
	var out confine.Confinement
	if said != nil {
		out = *said
	}
	out.Filters = append(slices.Clone(out.Filters), confine.PythonProgram())
	return &out
}
