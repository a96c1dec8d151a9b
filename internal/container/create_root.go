package container

import (
	"fmt"
	"os"
)

// makeRoot gives a guest with its own ids its own root. One that is forked has it later.
func (c *Container) makeRoot(o *CreateOptions) error {
	if !c.auto || o.Zygote != nil {
		return nil
	}
	root := c.entry.Mounts
	if err := os.Mkdir(root, rootMode); err != nil {
		return err
	}
	if err := c.mountRoot(root, root, o); err != nil {
		return err
	}
	spec, r := *c.spec, *c.spec.Root
	r.Path = root
	spec.Root, c.spec = &r, &spec
	return nil
}

// mountRoot mounts the guest's root on at, see the other one, with all that the specification's
// mounts need.
func (c *Container) mountRoot(dir, at string, o *CreateOptions) error {
	lower := []string{c.spec.Root.Path}
	if o.Layer != "" {
		lower = []string{o.Layer, c.spec.Root.Path}
	}
	if err := mountRoot(dir, at, lower, !c.spec.Root.Readonly, int(c.entry.IDs.First)); err != nil {
		return fmt.Errorf("container %s: making its root: %w", c.id, err)
	}
	points := append(missingMountPoints(c.spec.Mounts), o.MountPoints...)
	if err := fillRoot(at, points, o.RootFiles); err != nil {
		return fmt.Errorf("container %s: filling its root: %w", c.id, err)
	}
	return nil
}
