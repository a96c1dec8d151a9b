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
