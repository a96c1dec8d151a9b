package supervisor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Why host paths are opened. Between the moment a path is checked and the moment it is
// mounted whoever owns a directory on the way can put another thing, or a symlink, in its
// place. So the supervisor opens each path once, as the peer and without following links that
// PlanView did not follow, checks what it opened, and mounts exactly that, by descriptor.

// shown is one mount of a view. Two that are equal show the same thing in the same way.
type shown struct {
	bundle.ViewMount        // Source is the host's path
	dev, ino         uint64 // of what was found there
}

// plan finds out what a policy's file rules show: whole directories where the kernel
// decides about each path in them.
func (s *Supervisor) plan(p policy.Policy) (bundle.View, error) {
	if s.files != nil {
		return bundle.PlanLive(p)
	}
	return bundle.PlanView(p)
}

// openedView is a view whose sources are open.
type openedView struct {
	notes []string
	shown []shown
	files []*os.File // of shown, in the same order
}

func (v openedView) close() {
	for _, f := range v.files {
		_ = f.Close()
	}
}

// openView plans what the policy shows of the host and opens it, with the peer's own
// permissions.
func openView(p policy.Policy, who peer, planned func(policy.Policy) (bundle.View, error)) (view openedView, err error) {
	if len(p.FS()) == 0 {
		return view, nil
	}
	err = as(who, func() error {
		plan, err := planned(p)
		if err != nil {
			return fmt.Errorf("%w: %w", errPolicy, err)
		}
		view.notes = plan.Notes
		for _, m := range plan.Mounts {
			file, err := openSource(m, who)
			if err != nil {
				return err
			}
			view.files = append(view.files, file)
			var stat unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
				return &os.PathError{Op: "stat", Path: m.Source, Err: err}
			}
			view.shown = append(view.shown, shown{m, stat.Dev, stat.Ino})
		}
		return nil
	})
	if err != nil {
		view.close()
		return openedView{}, err
	}
	return view, nil
}

// openSource opens what is to be shown and checks, as the peer, that the peer may use
// it the way the policy asks.
func openSource(m bundle.ViewMount, who peer) (*os.File, error) {
	refuse := func(what string, err error) error {
		return fmt.Errorf("%w: fs rule for %s: %v %s: %w", errPolicy, m.Source, who, what, err)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, m.Source, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, refuse("cannot open it", err)
	}
	file := os.NewFile(uintptr(fd), m.Source)
	if err := checkSource(file, m, refuse); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func checkSource(file *os.File, m bundle.ViewMount, refuse func(string, error) error) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return refuse("cannot look at it", err)
	}
	kind, mode := uint32(unix.S_IFREG), uint32(unix.R_OK)
	if m.Dir {
		kind, mode = unix.S_IFDIR, unix.R_OK|unix.X_OK
	}
	if stat.Mode&unix.S_IFMT != kind {
		return refuse("cannot show it", errors.New("it changed its type while the policy was read"))
	}
	if m.Write {
		mode |= unix.W_OK
	}
	// AT_EACCESS is what makes this ask with the thread's file-system identity.
	err := unix.Faccessat2(int(file.Fd()), "", mode, unix.AT_EMPTY_PATH|unix.AT_EACCESS)
	if err != nil {
		return refuse(map[bool]string{false: "may not read it", true: "may not read and write it"}[m.Write], err)
	}
	return nil
}

// placeMount mounts what file refers to at place, which it makes, and cuts it off
// from mounts that appear below it on the host later.
func placeMount(place string, file *os.File) error {
	var stat unix.Stat_t
	err := unix.Fstat(int(file.Fd()), &stat)
	if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(place, 0o700)
	} else if err == nil {
		err = os.WriteFile(place, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("making a place for the mount of %s: %w", file.Name(), err)
	}
	tree, err := unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: file.Name(), Err: err}
	}
	defer unix.Close(tree)
	private := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, private); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: file.Name(), Err: err}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: file.Name(), Err: err}
	}
	return nil
}
