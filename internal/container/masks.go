package container

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Masks are the mounts by which the file rules of a container of an engine's are held where
// the host has no LSM programs: which of its volumes are read-only, and which paths have an
// empty directory or /dev/null mounted over them. They change while the container is frozen:
//
//	lift     an ordinary unmount of masks: those that go, and for a moment those that are in the
//	         way of what follows
//	probe    of a volume in which something is to be masked: the kernel says whether anybody
//	         holds anything of it, as a file, a directory or a mapping, wherever that is hidden
//	remount  volumes become read-only, which fails if somebody has a file open to write, or not
//	put      masks that are new, and those that were in the way
//
// The guest may move directories in what it may write, with the masks that are in them. So a
// mask is known by its mount's id, which was noted before the guest's first instruction, and
// one that is not where it was put is not taken away.
type Masks struct {
	c       *Container
	volumes map[string]mountInfo // by their place
	placed  map[string]mask      // by the path that is masked
	linked  map[string]bool      // paths that led over a link, and so elsewhere
}

type mask struct {
	mountInfo
	life bool // not to be taken away
}

// Remask is a change of masks.
type Remask struct {
	ReadOnly map[string]bool // volumes, by their place: read-only or not
	Unmask   []string        // paths
	Masks    []MaskedPath    // all that there are to be
}

// MaskedPath is a path that nobody shall see.
type MaskedPath struct {
	Path   string
	Volume string // the place of the volume that it is in; "" is none
	Must   bool   // something has to be there
}

// FindMasks notes the masks of a container that has not been started: what is mounted at the
// places of volumes, and at its masked paths, of which those in removable may be taken away.
func (c *Container) FindMasks(volumes, removable []string) (*Masks, error) {
	m := &Masks{c: c, volumes: make(map[string]mountInfo), placed: make(map[string]mask), linked: make(map[string]bool)}
	_, err := hostProc() // before any thread enters the container's
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	err = c.inside(func() error {
		all, err := listMounts()
		if err != nil {
			return err
		}
		for _, place := range volumes {
			if id, err := mountIDOf(place); err == nil { // else over a link of the image
				m.volumes[place] = all[id]
			}
		}
		masked := make(map[string]bool)
		for _, path := range c.config().MaskPaths {
			masked[path] = true
		}
		over := make(map[uint64]bool) // something is mounted over it, at the same place
		for _, info := range all {
			if parent, ok := all[info.parent]; ok && parent.place == info.place {
				over[parent.id] = true
			}
		}
		for _, info := range all {
			if masked[info.place] && !over[info.id] {
				m.placed[info.place] = mask{info, !slices.Contains(removable, info.place)}
			}
		}
		for _, path := range removable {
			f, err := openPlace(path)
			if err == nil {
				f.Close()
			}
			m.linked[path] = errors.Is(err, unix.ELOOP)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the masks of container %s: %w", c.id, err)
	}
	return m, nil
}

// mountIDOf is the id of what is mounted at a place, on which no link may be.
func mountIDOf(place string) (uint64, error) {
	f, err := openPlace(place)
	if err != nil {
		return 0, &os.PathError{Op: "opening the mount at", Path: place, Err: err}
	}
	defer f.Close()
	id, root, err := mountOf(f)
	if err == nil && !root {
		err = fmt.Errorf("%s is no mount", place)
	}
	return id, err
}

// mountOf is the id of the mount that a file is on, and whether the file is its root.
func mountOf(f *os.File) (id uint64, root bool, err error) {
	var stat unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &stat); err != nil {
		return 0, false, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if stat.Mask&unix.STATX_MNT_ID == 0 {
		return 0, false, errors.New("the kernel does not tell on which mount a file is: it takes Linux 5.8")
	}
	return stat.Mnt_id, stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Apply changes the masks of the container, which is frozen. On an error that is not [ErrTorn]
// nothing has changed; after success call Undo or Keep.
func (m *Masks) Apply(change Remask) (*Applied, error) {
	r := remasking{Applied: &Applied{c: m.c}, m: m, change: change}
	err := m.c.inside(r.look)
	if err == nil {
		err = r.prepare()
	}
	if err == nil {
		err = m.c.inside(r.applyAll)
	}
	r.release()
	if err != nil {
		r.Keep()
		return nil, fmt.Errorf("changing what container %s sees: %w", m.c.id, err)
	}
	return r.Applied, nil
}
