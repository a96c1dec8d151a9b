package container

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

const (
	// annotationIDs with the value "auto" asks for host ids of the guest's own.
	annotationIDs = "io.psi.ids"
	// AnnotationPolicy carries the canonical policy document of a bundle.
	AnnotationPolicy = "io.psi.policy"
)

// checkSpec refuses what libcontainer would stumble over later, with the rule.
func checkSpec(s *specs.Spec) error {
	switch {
	case s == nil:
		return errors.New("the bundle has no specification")
	case s.Root == nil || s.Root.Path == "":
		return errors.New("config.json: root.path must be set")
	case s.Process == nil:
		return errors.New("config.json: process must be set")
	}
	if major, _, _ := strings.Cut(s.Version, "."); s.Version != "" && major != "1" {
		return fmt.Errorf("config.json: ociVersion %q: this runtime implements 1.0 to %s", s.Version, specs.Version)
	}
	if err := checkHooks(s.Hooks); err != nil {
		return err
	}
	return checkProcess(s.Process)
}

// absolute returns a copy of the spec in which host paths no longer depend on the
// working directory: a supervisor cannot change into every bundle it starts.
func absolute(s *specs.Spec, bundle string) *specs.Spec {
	out, root := *s, *s.Root
	if !filepath.IsAbs(root.Path) {
		root.Path = filepath.Join(bundle, root.Path)
	}
	out.Root = &root
	out.Mounts = slices.Clone(s.Mounts)
	for i, m := range out.Mounts {
		if isBind(m) && !filepath.IsAbs(m.Source) {
			out.Mounts[i].Source = filepath.Join(bundle, m.Source)
		}
	}
	return &out
}

// groupPath decides where the container's cgroups are, as DESIGN.md's "State":
// what the bundle says; else below parent; else with systemd a delegated scope,
// on pure v2 /psi at the visible root, and on v1 (hybrid too) psi below the
// caller's own group of each controller, which is what a relative path means.
// Without root it is the name alone below the caller's own, or user.slice of the user's systemd.
func groupPath(s *specs.Spec, o *CreateOptions) (path string, useSystemd bool) {
	if s.Linux != nil && s.Linux.CgroupsPath != "" {
		return s.Linux.CgroupsPath, o.SystemdCgroup
	}
	name := groupName(o.Root, o.ID)
	if o.CgroupParent != "" {
		return filepath.Join(o.CgroupParent, name), false
	}
	if o.RootlessCgroups && !o.SystemdCgroup {
		return "", false // what libcontainer may go on without
	}
	if o.RootlessCgroups {
		return "user.slice:psi:" + name, true // made by the user's own systemd
	}
	if o.SystemdCgroup || cgroups.IsCgroup2UnifiedMode() && systemd.IsRunningSystemd() {
		return "system.slice:psi:" + name, true
	}
	path = filepath.Join(groupParent, name)
	if cgroups.IsCgroup2UnifiedMode() {
		path = "/" + path
	}
	return path, false
}

// newConfig translates the completed spec into libcontainer's form.
func newConfig(s *specs.Spec, o *CreateOptions) (*configs.Config, error) {
	path, useSystemd := groupPath(s, o)
	out, linux := *s, specs.Linux{}
	if s.Linux != nil {
		linux = *s.Linux
	}
	linux.CgroupsPath = path
	linux.Devices = withoutNumbers(linux.Devices)
	out.Linux, out.Mounts = &linux, mountsAsMeant(s.Mounts)
	config, err := convert(&specconv.CreateOpts{
		CgroupName:       o.ID,
		UseSystemdCgroup: useSystemd,
		NoPivotRoot:      o.NoPivot,
		NoNewKeyring:     o.NoNewKeyring,
		Spec:             &out,
		RootlessEUID:     os.Geteuid() != 0,
		RootlessCgroups:  o.RootlessCgroups,
	})
	if err != nil {
		return nil, err
	}
	// libcontainer takes the working directory for the bundle.
	config.Labels = slices.DeleteFunc(config.Labels, func(l string) bool { return strings.HasPrefix(l, "bundle=") })
	config.Labels = append(config.Labels, "bundle="+o.Bundle)
	dropBindData(config)
	return config, adaptResources(config, s)
}

// mountsAsMeant takes away what libcontainer would make of two kinds of options: `defaults` it hands
// to the file system, which refuses it, and recursive ones (rro, rnosuid …) it forgets unless the mount
// is a bind: below one that is not there is nothing, so the plain ones say the same.
func mountsAsMeant(mounts []specs.Mount) []specs.Mount {
	out := slices.Clone(mounts)
	for i, m := range out {
		options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "defaults" })
		if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
			for at, o := range options {
				if plain := strings.TrimPrefix(o, "r"); slices.Contains(recursive(), plain) {
					options[at] = plain
				}
			}
		}
		out[i].Options = options
	}
	return out
}

// recursive are the options that may stand behind an r.
func recursive() []string {
	return []string{"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nodiratime", "diratime",
		"relatime", "norelatime", "noatime", "atime", "strictatime", "nostrictatime", "nosymfollow", "symfollow"}
}

// withoutNumbers takes the numbers from FIFOs, which have none: libcontainer would
// compare them with those of the FIFO it has made.
func withoutNumbers(devices []specs.LinuxDevice) []specs.LinuxDevice {
	out := slices.Clone(devices)
	for i := range out {
		if out[i].Type == "p" {
			out[i].Major, out[i].Minor = 0, 0
		}
	}
	return out
}

// dropBindData drops options of a file system from bind mounts, to which the kernel
// would not apply them. libcontainer refuses them; engines and older runtimes do not.
func dropBindData(config *configs.Config) {
	for _, m := range config.Mounts {
		if m.IsBind() && m.Data != "" {
			logrus.Warnf("mount %s: options %q are a file system's, and a bind mount has none of its own: they are ignored", m.Destination, m.Data)
			m.Data = ""
		}
	}
}

// conversion guards specconv's table of default devices.
var conversion sync.Mutex

// convert calls specconv, which gives its default devices, a global table, to the
// container's root and then puts pointers to them into the config: the next
// container would change this one's. So each config gets copies, and the table is
// put back as it was.
func convert(o *specconv.CreateOpts) (*configs.Config, error) {
	conversion.Lock()
	defer conversion.Unlock()
	config, err := specconv.CreateLibcontainerConfig(o)
	if err != nil {
		return nil, err
	}
	for i, shared := range config.Devices {
		own := *shared
		config.Devices[i] = &own
	}
	for _, device := range specconv.AllowedDevices {
		device.Uid, device.Gid = 0, 0
	}
	return config, nil
}

// swapAccounting reports whether the kernel has a file to write the v1 limit of swap to.
var swapAccounting = sync.OnceValues(func() (bool, error) {
	dir, err := cgroups.GetOwnCgroupPath("memory")
	if err != nil {
		return false, err
	}
	_, err = os.Stat(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
	return !errors.Is(err, os.ErrNotExist), nil
})

// adaptResources fits a psi bundle's limits to the host's kind of cgroups.
func adaptResources(config *configs.Config, s *specs.Spec) error {
	if _, ok := s.Annotations[AnnotationPolicy]; !ok {
		return nil
	}
	r := config.Cgroups.Resources
	if cgroups.IsCgroup2UnifiedMode() {
		// Out of memory in one process ends the guest, not a random part of it.
		r.Unified = maps.Clone(r.Unified)
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		if r.Memory > 0 {
			r.Unified["memory.oom.group"] = "1"
		}
		return nil
	}
	if r.MemorySwap == 0 || r.MemorySwap != r.Memory {
		return nil
	}
	accounted, err := swapAccounting()
	if err != nil {
		return fmt.Errorf("finding the memory cgroup: %w", err)
	}
	if !accounted {
		r.MemorySwap = 0
	}
	return nil
}
