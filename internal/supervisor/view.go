package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Why host paths are pinned. The runtime mounts by path, and between the moment a
// path is checked and the moment it is mounted whoever owns a directory on the way can
// put another thing, or a symlink, in its place. So the supervisor opens each path
// once, as the peer and without following links that PlanView did not follow, checks
// what it opened, and mounts exactly that, by descriptor, at a place of its own that
// nobody else can see: the supervisor's mount namespace. The runtime is given that
// place as the source.

// pinnedView is a view whose sources are private mounts of the supervisor.
type pinnedView struct {
	bundle.View
	dir   string  // where the mounts are; "" when there are none
	shown []shown // the same mounts, as the policy's rules came to them
}

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

// pinView plans what the policy shows of the host with the peer's own permissions and
// pins it below dir, which must not exist. Release it once the container is created:
// the guest has its own mounts then.
func pinView(p policy.Policy, who peer, dir string, plan func(policy.Policy) (bundle.View, error)) (_ pinnedView, err error) {
	view := pinnedView{}
	if len(p.FS()) == 0 {
		return view, nil
	}
	opened := make(chan *os.File)
	mounted := make(chan error)
	planned := make(chan error, 1)
	// The peer's thread opens, this one mounts: mounting needs the supervisor's
	// capabilities. One descriptor is in flight at a time.
	go func() {
		defer close(opened)
		planned <- as(who, func() error {
			var err error
			if view.View, err = plan(p); err != nil {
				return fmt.Errorf("%w: %w", errPolicy, err)
			}
			for _, m := range view.Mounts {
				file, err := openSource(m, who)
				if err != nil {
					return err
				}
				opened <- file
				if err := <-mounted; err != nil {
					return err
				}
			}
			return nil
		})
	}()
	var places []string
	for file := range opened {
		var err error
		if view.dir == "" {
			if err = makePlaces(dir); err == nil {
				view.dir = dir
			}
		}
		place := filepath.Join(dir, strconv.Itoa(len(places)))
		if err == nil {
			err = placeMount(place, file)
		}
		var stat unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(file.Fd()), &stat)
		}
		view.shown = append(view.shown, shown{dev: stat.Dev, ino: stat.Ino})
		places = append(places, place)
		mounted <- errors.Join(err, file.Close())
	}
	if err = <-planned; err != nil {
		return pinnedView{}, errors.Join(err, view.release())
	}
	mounts := make([]bundle.ViewMount, len(view.Mounts))
	for i, m := range view.Mounts {
		view.shown[i].ViewMount = m
		m.Source = places[i]
		mounts[i] = m
	}
	view.Mounts = mounts
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

// makePlaces makes dir a small tmpfs for mount points, so that one detach takes
// all of them away again.
func makePlaces(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a place for mounts: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("psi-view", dir, "tmpfs", flags, "size=4m,mode=0700"); err != nil {
		return errors.Join(&os.PathError{Op: "mount tmpfs", Path: dir, Err: err}, os.Remove(dir))
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

// release takes the private mounts away.
func (v pinnedView) release() error {
	if v.dir == "" {
		return nil
	}
	if err := unix.Unmount(v.dir, unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: v.dir, Err: err}
	}
	return os.Remove(v.dir)
}
