package container

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HostMount is a mount of a specification that shows files of the host as the guest's own.
type HostMount struct {
	Source, Dest string
	Write        bool
	Dir          bool   // what is there is a directory; else a file
	Dev, Ino     uint64 // of what is there
}

// HostMounts are those that a container of psi's own was made with, its idmapped mounts, and
// what is there now. Nobody may have hidden one since, see [Container.Apply].
func (c *Container) HostMounts() (mounts []HostMount, err error) {
	err = c.inside(func() error {
		for _, m := range c.config().Mounts {
			if !m.IsIDMapped() {
				continue
			}
			stat, err := statMount(m.Destination)
			if err != nil {
				return err
			}
			mounts = append(mounts, HostMount{
				Source: m.Source, Dest: m.Destination, Write: m.Flags&unix.MS_RDONLY == 0,
				Dir: stat.Mode&unix.S_IFMT == unix.S_IFDIR, Dev: stat.Dev, Ino: stat.Ino,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at what container %s sees: %w", c.id, err)
	}
	return mounts, nil
}
