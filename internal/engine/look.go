package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
)

// Look finds out what Narrow has to know of the host for a bundle.
func Look(spec *specs.Spec, bundle string, rules Rules) (Host, error) {
	h := Host{OwnNamespaces: map[string]bool{}, Kinds: map[string]Kind{}, ReadOnly: map[string]bool{}, EngineMounts: rules.EngineMounts}
	if spec.Linux != nil {
		for _, ns := range spec.Linux.Namespaces {
			same, err := ownNamespace(ns)
			if err != nil {
				return Host{}, err
			}
			if same {
				h.OwnNamespaces[ns.Path] = true
			}
		}
	}
	for i := range spec.Mounts {
		source := spec.Mounts[i].Source
		kind, err := kindOf(bundle, source)
		if err != nil {
			return Host{}, err
		}
		h.Kinds[source] = kind
		if !isBind(&spec.Mounts[i]) || !filepath.IsAbs(source) {
			continue
		}
		// A link is not what it says: the rules are for what is mounted.
		if real, err := filepath.EvalSymlinks(source); err == nil && real != filepath.Clean(source) {
			spec.Mounts[i].Source = real
			h.Kinds[real] = kind
		}
		var system unix.Statfs_t
		if source = spec.Mounts[i].Source; kind != Absent {
			if err := unix.Statfs(source, &system); err != nil {
				return Host{}, &os.PathError{Op: "statfs", Path: source, Err: err}
			}
			h.ReadOnly[source] = system.Flags&unix.ST_RDONLY != 0
		}
	}
	abi, err := confine.LandlockABI()
	if err != nil && !errors.Is(err, confine.ErrNoLandlock) {
		return Host{}, err
	}
	h.Landlock = abi
	if spec.Root != nil {
		root := spec.Root.Path
		if !filepath.IsAbs(root) {
			root = filepath.Join(bundle, root)
		}
		h.List = func(dir string) ([]string, error) { return list(root, dir) }
		h.Modules = func() (*Modules, error) { return ReadModules(root) }
	}
	h.Doors = doors
	return h, nil
}

// ownNamespace reports whether a namespace is the one that psi-runtime is in.
func ownNamespace(ns specs.LinuxNamespace) (bool, error) {
	if ns.Path == "" {
		return false, nil
	}
	names := map[specs.LinuxNamespaceType]string{
		specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.MountNamespace: "mnt",
		specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.UserNamespace: "user", specs.CgroupNamespace: "cgroup",
		specs.TimeNamespace: "time",
	}
	own, err := os.Stat("/proc/self/ns/" + names[ns.Type])
	if err != nil {
		return false, fmt.Errorf("looking at our %s namespace: %w", ns.Type, err)
	}
	theirs, err := os.Stat(ns.Path)
	if err != nil {
		return false, fmt.Errorf("looking at the container's %s namespace: %w", ns.Type, err)
	}
	return os.SameFile(own, theirs), nil
}

func kindOf(bundle, source string) (Kind, error) {
	if source == "" {
		return Absent, nil
	}
	if !filepath.IsAbs(source) {
		source = filepath.Join(bundle, source)
	}
	info, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case err != nil:
		return Absent, fmt.Errorf("looking at the source of a mount: %w", err)
	case info.IsDir():
		return Directory, nil
	case info.Mode().IsRegular():
		return File, nil
	}
	return Other, nil
}

// list names what is in a directory of the image, which is hostile: no link is
// followed, neither on the way nor out of it.
func list(root, dir string) ([]string, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	at := "."
	for _, name := range strings.FieldsFunc(dir, func(c rune) bool { return c == '/' }) {
		at = filepath.Join(at, name)
		info, err := r.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // a mount point that will be made
		}
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("%s is a link or a file in the image, and a mount point lies below it: mount it elsewhere", dir)
		}
	}
	d, err := r.Open(at)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// doors names the sockets and FIFOs below a directory of the host. No link is followed:
// in the container it leads elsewhere.
func doors(dir string) (names []string, err error) {
	seen := 0
	err = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		if err != nil {
			return err
		}
		if seen++; seen > mostNames {
			return fmt.Errorf("%s has more than %d files, too many to look for them", dir, mostNames)
		}
		if entry.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 {
			names = append(names, strings.TrimPrefix(name, filepath.Clean(dir)))
		}
		return nil
	})
	return names, errors.Join(err, atMost(names, "sockets and FIFOs in "+dir))
}

// mostNames is how many files of a volume are looked at, and mostMasks how many are masked,
// each of which is a mount.
const (
	mostNames = 1 << 20
	mostMasks = 1 << 12
)

func atMost(names []string, what string) error {
	if len(names) > mostMasks {
		return fmt.Errorf("%d %s: more than %d", len(names), what, mostMasks)
	}
	return nil
}
