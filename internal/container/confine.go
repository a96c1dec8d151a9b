package container

import (
	"os"
	"slices"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
)

// wrap has the process start as what puts a confinement on (psi-init) or loads the
// bundle's own filter late, or as the second which then becomes the first, if there is
// need. Their programs and data are the last of its descriptors: the caller closes
// them once the process has been started.
func (c *Container) wrap(p *libcontainer.Process, inner *confine.Confinement) (files []*os.File, err error) {
	if inner != nil {
		f, err := c.wrapInner(p, *inner)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	if c.entry.Late != nil {
		more, err := wrapLate(p, c.entry.Late, c.entry.stateDir())
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

// wrapInner has the process start as psi-init, with one capability more than the
// container's other processes, so that none of them can trace it.
func (c *Container) wrapInner(p *libcontainer.Process, what confine.Confinement) (*os.File, error) {
	own := p.Capabilities
	if own == nil {
		own = c.config().Capabilities
	}
	if own == nil {
		own = &configs.Capabilities{}
	}
	what.Guard = confine.NewGuard(own.Inheritable, own.Bounding, own.Permitted)
	args, f, err := what.Wrap(p.Args, 3+len(p.ExtraFiles))
	if err != nil {
		return nil, err
	}
	p.Args = args
	p.ExtraFiles = append(slices.Clone(p.ExtraFiles), f)
	with := what.Guard.With
	p.Capabilities = &configs.Capabilities{
		Bounding: with(own.Bounding), Effective: with(own.Effective), Inheritable: with(own.Inheritable),
		Permitted: with(own.Permitted), Ambient: with(own.Ambient),
	}
	return f, nil
}

// checkWrapped refuses a /proc in the container through which something else than
// what wrap passed could be executed.
func (c *Container) checkWrapped(inner *confine.Confinement) error {
	if inner == nil && c.entry.Late == nil {
		return nil
	}
	return confine.CheckProc(c.pid)
}

// takeFilter takes psi's own filter out of the specification of a guest: it is compiled
// already, psi-init puts it on, and libcontainer would compile it anew.
func (c *Container) takeFilter() {
	if c.spec.Linux == nil || !c.spec.Process.NoNewPrivileges {
		return
	}
	if c.entry.Filter = confine.Ready(c.spec.Linux.Seccomp); c.entry.Filter != "" {
		c.spec = withoutSeccomp(c.spec)
	}
}

func withoutSeccomp(s *specs.Spec) *specs.Spec {
	if s.Linux == nil {
		return s
	}
	spec, linux := *s, *s.Linux
	linux.Seccomp = nil
	spec.Linux = &linux
	return &spec
}

// confinement is what a process of the container puts on: what the caller says, and
// last, because it forbids much, what takeFilter took.
func (c *Container) confinement(said *confine.Confinement) (*confine.Confinement, error) {
	if c.entry.Filter == "" {
		return said, nil
	}
	program, err := confine.ReadyProgram(c.entry.Filter)
	if err != nil {
		return nil, err
	}
	var out confine.Confinement
	if said != nil {
		out = *said
	}
	out.Filters = append(slices.Clone(out.Filters), program)
	return &out, nil
}
