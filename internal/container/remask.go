package container

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// remasking is one change of masks.
type remasking struct {
	*Applied
	m      *Masks
	change Remask
	all    map[uint64]mountInfo // as it was before

	lift  []*cover        // what is there and has to be lifted
	put   []*cover        // what is to be put: of these, and new ones
	probe map[string]bool // volumes in which nothing may be held

	reserve []*os.File // descriptors for taking back
}

// cover is a mask that is being moved.
type cover struct {
	path  string   // that is masked
	place string   // where that is now: the guest may have moved it
	life  bool     // see mask
	was   uint64   // its mount's id before the change; 0 for a new one
	id    uint64   // while it is mounted
	tree  *os.File // while it is not
	null  *os.File // for a new one: /dev/null, if a file is to be masked
	must  bool
	in    uint64 // the mount that it has to be on; 0 is any
}

// look finds out what has to be done, and changes nothing but what is known of masks that
// have gone: who replaces a file that is masked, from outside, takes its mask away.
func (r *remasking) look() (err error) {
	if r.all, err = listMounts(); err != nil {
		return err
	}
	for path, known := range r.m.placed {
		if now, ok := r.all[known.id]; !ok || now.what != known.what {
			delete(r.m.placed, path)
		}
	}
	r.probe = make(map[string]bool)
	lifted, err := r.lookForOld()
	if err != nil {
		return err
	}
	if err := r.lookForNew(lifted); err != nil {
		return err
	}
	for place := range r.change.ReadOnly {
		if err := r.onlyOurs(place, nil); err != nil {
			return err
		}
	}
	for place := range r.probe {
		if err := r.onlyOurs(place, lifted); err != nil {
			return err
		}
	}
	r.order(lifted)
	return nil
}

// lookForOld finds the masks that are to be taken away, and those that are over them.
func (r *remasking) lookForOld() (lifted map[string]bool, err error) {
	lifted = make(map[string]bool) // by path; false: it comes back
	for _, path := range r.change.Unmask {
		known, ok := r.m.placed[path]
		switch {
		case r.m.linked[path]:
			return nil, fmt.Errorf("%s was a link, or behind one, when it was masked: what that led to stays masked: keep the rule, or make a new container", path)
		case !ok || known.life:
			continue
		case r.all[known.id].place != path:
			return nil, fmt.Errorf("the mask of %s is at %q now: somebody has moved the directory that it was in: have that moved back, keep the rule, or make a new container", path, r.all[known.id].place)
		}
		lifted[path] = true
		if r.all[known.parent].shared {
			return nil, errShared(path)
		}
	}
	for path, known := range r.m.placed {
		for gone := range lifted {
			if _, ok := lifted[path]; !ok && inside(r.all[known.id].place, gone) {
				lifted[path] = false
			}
		}
	}
	return lifted, nil
}

// inside reports whether name is below dir.
func inside(dir, name string) bool {
	return name != dir && strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// lookForNew finds the masks that are missing.
func (r *remasking) lookForNew(lifted map[string]bool) error {
	for _, want := range r.change.Masks {
		if _, ok := r.m.placed[want.Path]; ok || r.m.linked[want.Path] { // which is masked where it led to
			continue
		}
		place, err := openPlace(want.Path)
		if err == nil {
			place.Close()
		}
		hidden := false // what is there is seen when others are lifted
		for path := range lifted {
			hidden = hidden || inside(path, want.Path)
		}
		missing := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
		switch {
		case missing && !hidden && want.Must:
			return fmt.Errorf("there is no %s that could be masked, and the host could make one later: make it, leave the rule out, or make a new container", want.Path)
		case missing && !hidden:
			continue
		case errors.Is(err, unix.ELOOP):
			return fmt.Errorf("%s is a link, or behind one, which somebody could change: name what it leads to", want.Path)
		case err != nil && !hidden:
			return &os.PathError{Op: "opening", Path: want.Path, Err: err}
		}
		c := &cover{path: want.Path, place: want.Path, must: want.Must}
		if want.Volume != "" {
			r.probe[want.Volume] = true
			c.in = r.m.volumes[want.Volume].id
		}
		r.put = append(r.put, c)
	}
	return nil
}

// errShared is why nothing can be mounted at a place.
func errShared(place string) error {
	return fmt.Errorf("what is mounted at %s would be at other places too, because its mount is shared: keep the rules about it, or make a new container", place)
}

// onlyOurs refuses a volume with mounts in it that are not known. With lifted, which is of
// masks, those in it are lifted too, and no other may be there.
func (r *remasking) onlyOurs(place string, lifted map[string]bool) error {
	volume, ok := r.m.volumes[place]
	if !ok {
		return fmt.Errorf("the mount point %s was a link, or behind one, when the container was made: make a new container", place)
	}
	if lifted != nil && r.all[volume.id].shared {
		return errShared(place)
	}
	known := make(map[uint64]string)
	for path, m := range r.m.placed {
		known[m.id] = path
	}
	volumes := make(map[uint64]bool)
	for _, v := range r.m.volumes {
		volumes[v.id] = true
	}
	for _, info := range r.all {
		if !isOn(r.all, info, volume.id) {
			continue
		}
		path, ours := known[info.id]
		switch {
		case ours && lifted != nil:
			if _, ok := lifted[path]; !ok {
				lifted[path] = false
			}
		case !ours && (lifted != nil || !volumes[info.id]):
			return fmt.Errorf("something else is mounted in %s, at %s, so that nobody can tell whether it is in use: keep the rules about it, or make a new container", place, info.place)
		}
	}
	return nil
}

// order sorts what is to be done: a directory is lifted before what is in it, and put after that.
func (r *remasking) order(lifted map[string]bool) {
	for path, gone := range lifted {
		known := r.m.placed[path]
		c := &cover{path: path, place: r.all[known.id].place, life: known.life, was: known.id, id: known.id}
		r.lift = append(r.lift, c)
		if !gone {
			r.put = append(r.put, c)
		}
	}
	slices.SortFunc(r.lift, func(a, b *cover) int { return strings.Compare(a.place, b.place) })
	slices.SortFunc(r.put, func(a, b *cover) int { return strings.Compare(b.place, a.place) })
}

// prepare makes what files are masked with. It is the host's, because the container's could be
// anything. And it sees to it that there are descriptors to take everything back with.
func (r *remasking) prepare() error {
	for range 4 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return fmt.Errorf("reserving descriptors: %w", err)
		}
		r.reserve = append(r.reserve, f)
	}
	for _, c := range r.put {
		if c.was != 0 {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, os.DevNull, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: os.DevNull, Err: err}
		}
		c.null = os.NewFile(uintptr(fd), os.DevNull)
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return &os.PathError{Op: "mount_setattr", Path: os.DevNull, Err: err}
		}
	}
	return nil
}

// release closes what prepare made and nobody needed.
func (r *remasking) release() {
	closeTrees(r.reserve)
	r.reserve = nil
	for _, c := range r.put {
		if c.null != nil {
			_ = c.null.Close()
			c.null = nil
		}
	}
}

// applyAll is apply, or nothing.
func (r *remasking) applyAll() error {
	err := r.apply()
	if err != nil {
		r.release()
		err = errors.Join(err, torn(r.undo.run()))
	}
	return err
}

func (r *remasking) apply() error {
	for _, c := range r.lift {
		if err := r.takeOff(c); err != nil {
			return err
		}
		r.undo.add(func() error { return r.putOn(c) })
	}
	for place := range r.probe {
		if err := unheld(place, r.m.volumes[place].id); err != nil {
			return err
		}
	}
	for place, readonly := range r.change.ReadOnly {
		if err := r.setReadOnly(place, readonly); err != nil {
			return err
		}
		r.undo.add(func() error { return r.setReadOnly(place, !readonly) })
	}
	for _, c := range r.put {
		switch err := r.putOn(c); {
		case errors.Is(err, os.ErrNotExist) && c.was == 0 && !c.must:
			continue
		case err != nil:
			return err
		}
		r.undo.add(func() error { return r.takeOff(c) })
	}
	return r.settle()
}
