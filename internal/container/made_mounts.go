package container

import "fmt"

// HostMount is a mount of a guest that shows files of the host as its own.
type HostMount struct {
	Source, Dest string
	Write        bool
	Dir          bool   // what is there is a directory; else a file
	Dev, Ino     uint64 // of what is there
}

// HostMounts are those that a container of psi's own was made with, its idmapped mounts, with
// what is there now. Nobody may have hidden one since, see [Container.Apply], and it must be frozen,
// or what is there changes while it is looked at.
func (c *Container) HostMounts() (mounts []HostMount, err error) {
	err = c.inside(func() error {
		for _, m := range c.config().Mounts {
			if !m.IsIDMapped() {
				continue
			}
			found, err := mountAt(m.Destination)
			if err != nil {
				return err
			}
			found.Source = m.Source
			mounts = append(mounts, found)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at what container %s sees: %w", c.id, err)
	}
	return mounts, nil
}
