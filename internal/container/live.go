package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a running guest sees can be changed while it is frozen. From outside a thread
// enters the guest's mount namespace, where it finds what the guest has and keeps its
// own rights:
//
//	hide   an ordinary unmount: it fails if the guest has anything there open, as a file,
//	       a directory or a mapping, wherever it hides it; so what was hidden is gone
//	show   a detached, idmapped clone of the host's mount is moved to its place, which is
//	       made in the guest's root through a writable clone of it that nobody else sees
//	file   written beside and renamed, through the same clone
//
// The guest decides nothing here. It could have moved directories in what it may write,
// so every path is resolved without following a link, and what is unmounted is checked
// to be the mount that is meant.

// ErrBusy means that the guest has something open in what was to be taken from it.
var ErrBusy = errors.New("the guest has something open there")

// ErrTorn means that a change of what a guest sees failed, and could not be taken back either:
// nobody knows what it sees.
var ErrTorn = errors.New("what it sees could not be taken back")

// torn is for the error of taking something back.
func torn(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrTorn, err)
	}
	return err
}

// LiveMount is host files to be shown to a guest that runs.
type LiveMount struct {
	Source *os.File // a handle (O_PATH) on the directory or file, through the mount to show
	Dest   string   // absolute, as the guest sees it
	Dir    bool
	Write  bool // else read-only
}

// HiddenMount is a mount that is to be taken from a guest: where it was put, and what it shows.
// It has to be there still, or at the place of another that goes with it: in what it may write a
// guest moves directories, with what is mounted in them, so that another mount is where this one
// was, and this one where nobody looks for it.
type HiddenMount struct {
	Dest     string
	Write    bool
	Dev, Ino uint64
}

// Change is what to change in a guest's view. Nil and empty parts stay as they are.
type Change struct {
	Hide  []HiddenMount     // of earlier views, parents before what is in them
	Show  []LiveMount       // parents before what is in them
	Files map[string][]byte // in the guest's own root, 0644, in existing directories
	Tmp   int64             // size of /tmp in bytes; 0 leaves it
	Cover *LiveLayer        // directories of the root to show through another layer

	ClientUID, ClientGID int // whose files Show shows as the guest's own
}

// freezePatience is how long a guest may take to stop.
const freezePatience = 2 * time.Second

// Freeze stops every process of the container. thaw lets them go on, unless they were
// stopped before; it must be called.
func (c *Container) Freeze() (thaw func() error, err error) {
	group, err := c.UnifiedCgroup()
	if err != nil {
		return nil, fmt.Errorf("stopping a guest: %w", err)
	}
	file := filepath.Join(group, "cgroup.freeze")
	before, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("stopping container %s: %w", c.id, err)
	}
	thaw = func() error {
		if strings.TrimSpace(string(before)) == "1" {
			return nil
		}
		return os.WriteFile(file, []byte("0"), 0)
	}
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		return nil, fmt.Errorf("stopping container %s: %w", c.id, err)
	}
	for end := time.Now().Add(freezePatience); ; time.Sleep(100 * time.Microsecond) {
		frozen, err := groupValue(group, "cgroup.events", "frozen")
		if err == nil && frozen == 1 {
			return thaw, nil
		}
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("it does not stop within %v", freezePatience)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("stopping container %s: %w", c.id, err), thaw())
		}
	}
}

// Applied is a change that was made.
type Applied struct {
	c      *Container
	undo   undoStack
	spares []*os.File // what was hidden
}

// undoFiles is how many descriptors taking a change back needs at a time: a step four, and some of
// those before it are still being closed.
const undoFiles = 8

// reserve opens as many: who has run out of them has these, when they are closed, to take back what
// was changed until then.
func (c *Container) reserve() (room []*os.File, err error) {
	if c.pidfd == nil {
		return nil, nil // it has ended, which inside says
	}
	for range undoFiles {
		fd, err := unix.FcntlInt(c.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return room, os.NewSyscallError("fcntl", err)
		}
		room = append(room, os.NewFile(uintptr(fd), "room"))
	}
	return room, nil
}

// Undo takes the change back. The guest must still be frozen.
func (a *Applied) Undo() error {
	defer a.Keep()
	if err := a.c.inside(a.undo.run); err != nil {
		return fmt.Errorf("taking back what container %s sees: %w", a.c.id, err)
	}
	return nil
}

// Keep lets go of what would be needed to take the change back.
func (a *Applied) Keep() {
	for _, spare := range a.spares {
		_ = spare.Close()
	}
	a.spares = nil
}

// Apply makes the change in a guest with a root of its own (io.psi.ids=auto) that is
// frozen (Files alone need no freezing). On an error that is not [ErrTorn] nothing has changed; after success
// call Undo or Keep.
func (c *Container) Apply(change Change) (*Applied, error) {
	if c.entry.Mounts == "" && c.forked == nil {
		return nil, fmt.Errorf("container %s: an engine made its root: what it sees is the engine's to change", c.id)
	}
	trees, err := c.detachedTrees(change)
	defer func() { closeTrees(trees) }()
	if err != nil {
		return nil, err
	}
	var covers []*os.File
	if change.Cover != nil {
		if change.Cover.Over == nil {
			change.Cover.Over = new(Covers)
		}
		if err = c.uncovers(*change.Cover); err == nil {
			covers, err = coverTrees(*change.Cover)
		}
	}
	defer func() { closeTrees(covers) }()
	if err != nil {
		return nil, err
	}
	room, err := c.reserve()
	defer func() { closeTrees(room) }()
	if err != nil {
		return nil, err
	}
	a := &Applied{c: c}
	err = c.inside(func() error {
		l := live{Applied: a}
		defer l.close()
		err := l.apply(change, trees, covers)
		if err != nil {
			closeTrees(room)
			err = errors.Join(err, torn(a.undo.run()))
		}
		return err
	})
	if err != nil {
		a.Keep()
		return nil, fmt.Errorf("changing what container %s sees: %w", c.id, err)
	}
	return a, nil
}

func closeTrees(trees []*os.File) {
	for _, tree := range trees {
		_ = tree.Close()
	}
}

// detachedTrees makes what is to be shown, attached to nothing.
func (c *Container) detachedTrees(change Change) (trees []*os.File, err error) {
	if len(change.Show) == 0 {
		return nil, nil
	}
	if err := c.MapClient(change.ClientUID, change.ClientGID); err != nil {
		return nil, err
	}
	ids := c.clientIDs.namespace
	for _, m := range change.Show {
		fd, err := unix.OpenTree(int(m.Source.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return trees, &os.PathError{Op: "open_tree", Path: m.Dest, Err: err}
		}
		trees = append(trees, os.NewFile(uintptr(fd), m.Dest))
		attr := unix.MountAttr{
			Attr_set:    unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_IDMAP,
			Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ids.Fd()),
		}
		if !m.Write {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return trees, &os.PathError{Op: "mount_setattr", Path: m.Dest, Err: err}
		}
	}
	return trees, nil
}
