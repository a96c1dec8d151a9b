package container

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/configs"
)

// placed says whether the zygote is where its guests have to begin, which its first one finds out.
func (z *Zygote) placed() bool {
	z.place.Lock()
	defer z.place.Unlock()
	return z.parents != nil
}

// groupPaths chooses the cgroups of a guest, by controller, and tells which it shares with
// others. On v1 a guest is put into those that limit or count it: each costs as much as a
// namespace. Where there is cgroup2 too it counts the time, and what devices may be used is set
// for a group that zygotes are in, and whom they fork.
func (z *Zygote) groupPaths(config *configs.Config, name string) (paths map[string]string, shared []string, err error) {
	z.place.Lock()
	defer z.place.Unlock()
	if z.parents == nil {
		parents, err := groupParents(config, name)
		if err != nil {
			return nil, nil, err
		}
		if parent := parents["devices"]; parent != "" {
			rules, err := json.Marshal(config.Cgroups.Devices)
			if err != nil {
				return nil, nil, err
			}
			z.devices = []string{filepath.Join(parent, "@"+digest(string(rules)))}
			delete(parents, "devices")
		}
		if err := z.keepGroups(parents); err != nil {
			return nil, nil, err
		}
		if err := z.shareDevices(config); err != nil {
			return nil, nil, err
		}
		z.parents = parents
	}
	paths = make(map[string]string, len(z.parents))
	for controller, parent := range z.parents {
		paths[controller] = filepath.Join(parent, name)
	}
	return paths, z.devices, nil
}

// groupParents are the directories in which the cgroups of guests are made.
func groupParents(config *configs.Config, name string) (map[string]string, error) {
	groups, err := manager.New(config.Cgroups)
	if err != nil {
		return nil, err
	}
	all := groups.GetPaths()
	wanted := []string{"", "memory", "cpu", "pids", "devices"}
	if all[""] == "" {
		wanted = append(wanted, "cpuacct")
	}
	parents := make(map[string]string)
	for controller, dir := range all {
		if filepath.Base(dir) != name {
			return nil, fmt.Errorf("cgroup %s is not named %s", dir, name)
		}
		if slices.Contains(wanted, controller) {
			parents[controller] = filepath.Dir(dir)
		}
	}
	return parents, nil
}

// keepGroups notes what the zygote is to keep, with what its guests share: the parents of their
// groups, which else were made for each guest that is alone, as often as its own.
func (z *Zygote) keepGroups(parents map[string]string) error {
	if z.entry.Shared != nil {
		return nil // by an attempt that failed
	}
	z.entry.Shared = slices.Clone(z.devices)
	for _, parent := range parents {
		if filepath.Base(parent) == groupParent {
			z.entry.Shared = append(z.entry.Shared, parent)
		}
	}
	z.entry.owner.use(z.entry.commonGroups())
	return z.entry.write()
}

// shareDevices moves the zygote into a v1 group with the device rules of its guests. No
// container has an id with an @ in it.
func (z *Zygote) shareDevices(config *configs.Config) error {
	if z.devices == nil {
		return nil
	}
	group, err := manager.NewWithPaths(config.Cgroups, map[string]string{"devices": z.devices[0]})
	if err == nil {
		err = group.Apply(z.process.Pid)
	}
	if err == nil {
		err = group.Set(&cgroups.Resources{Devices: config.Cgroups.Devices})
	}
	if err != nil {
		return fmt.Errorf("limiting the devices of a zygote: %w", err)
	}
	return nil
}
