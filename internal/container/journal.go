package container

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// entry is a container's journal: everything on the host that goes with it, by
// name. It is written before the things are made, so a name in it may stand for
// something that does not exist yet; undo copes.
type entry struct {
	ID      string    `json:"id"`
	Root    string    `json:"root"`
	Bundle  string    `json:"bundle"`
	Rootfs  string    `json:"rootfs"` // as the bundle names it
	Created time.Time `json:"created"`
	IDs     idRange   `json:"ids"`
	// Mounts is the directory the guest's own root is mounted on while the guest is
	// made; "" if it has none.
	Mounts string `json:"mounts,omitempty"`
	// Cgroups: controller to directory, as libcontainer has them.
	Cgroups map[string]string `json:"cgroups,omitempty"`
	// Shared are cgroups that others use too: each goes with the last of its users.
	Shared []string `json:"shared,omitempty"`
	// Attendant is the process that serves a detached guest from the host.
	Attendant *processRef `json:"attendant,omitempty"`
	// Hooks are those that psi runs itself.
	Hooks *lateHooks `json:"hooks,omitempty"`
	// Late is the seccomp filter that libcontainer does not load.
	Late *configs.Seccomp `json:"late,omitempty"`
	// Filter is the name of psi's own seccomp filter that the processes put on by psi-init.
	Filter string `json:"filter,omitempty"`
	// Detached: the container outlives its creator on purpose (`create`, `run -d`).
	Detached bool `json:"detached,omitempty"`

	// file is the journal on disk, open and flocked by the process that owns the
	// container; nil for anybody else. path is its name, owner whose it is, if anybody's.
	file  *os.File
	path  string
	owner *Owner
}

func (e *entry) stateDir() string { return filepath.Join(e.Root, e.ID) }

// journalPath is where the journal of a container is: below the run directory, by
// the id alone for the default root, else also by a digest of the root. Making the
// file is the claim on the container's name.
func (r runDir) journalPath(root, id string) string {
	name := id + "@"
	if root != defaultRunDir() {
		name += digest(root)
	}
	return filepath.Join(string(r), name)
}

// groupName is the name of the container's cgroup, by the same rule.
func groupName(root, id string) string {
	if root == defaultRunDir() {
		return id
	}
	return id + "-" + digest(root)
}

func digest(root string) string {
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:6])
}

// claim makes the journal and locks it; ErrExist if there is one.
func (e *entry) claim() (err error) {
	if e.file, err = e.owner.journal(e.path); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("container %s below %s: %w", e.ID, e.Root, ErrExist)
	}
	for e.file == nil { // there was none to be had
		f, err := os.OpenFile(e.path, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("container %s below %s: %w", e.ID, e.Root, ErrExist)
		}
		if err != nil {
			return fmt.Errorf("making the journal of container %s: %w", e.ID, err)
		}
		gone, err := lockFile(f, unix.LOCK_EX)
		if err == nil && !gone {
			e.file = f
			return nil
		}
		// GC took it for a dead process's in the moment between.
		f.Close()
		if err != nil {
			return errors.Join(fmt.Errorf("locking the journal of container %s: %w", e.ID, err), os.Remove(e.path))
		}
	}
	return nil
}

// lockFile locks an open file or directory, and tells whether it was deleted before.
func lockFile(f *os.File, how int) (gone bool, err error) {
	if err := flock(f, how); err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	return st.Nlink == 0, nil
}

// write appends the entry as one line. The last whole line is in force: appending
// is one system call, where replacing a file would be five and, on a disk, a wait
// for the data.
func (e *entry) write() error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding the journal of container %s: %w", e.ID, err)
	}
	f := e.file
	if f == nil {
		if f, err = os.OpenFile(e.path, os.O_APPEND|os.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("opening the journal of container %s: %w", e.ID, err)
		}
		defer f.Close()
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the journal of container %s: %w", e.ID, err)
	}
	return nil
}

// release gives the lock up; the container is then nobody's.
func (e *entry) release() {
	if e.file != nil {
		e.file.Close()
		e.file = nil
	}
}

// readEntry reads a journal. Without a whole line (it was cut off by its writer's
// death before anything was made) the entry has no ID.
func readEntry(path string, r io.Reader) (*entry, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	e := &entry{path: path}
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	if len(whole) == 0 {
		return e, nil
	}
	last := whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]
	if err := json.Unmarshal(last, e); err != nil {
		return nil, fmt.Errorf("reading journal %s: %w", path, err)
	}
	return e, nil
}

// loadEntry reads the journal at path; ErrNotExist if there is none.
func loadEntry(path string) (*entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readEntry(path, f)
}

// takeEntry reads the journal at path and takes it over, whose process must have
// died; ErrOwned if it has not, ErrNotExist if there is none.
func takeEntry(path string) (*entry, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	gone, err := lockFile(f, unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = ErrOwned
	case gone:
		err = ErrNotExist
	}
	var e *entry
	if err == nil {
		e, err = readEntry(path, f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	e.file = f
	return e, nil
}

// claimIDs takes the entry's range, which it names already; os.ErrExist if somebody
// has it.
func (e *entry) claimIDs(run runDir) error {
	return os.Link(e.path, e.IDs.file(run))
}

// undo removes everything the entry names, newest first, and then the entry. It
// can be repeated: a step that fails stops it, and what is left stays written
// down. The caller owns the entry and does not hold the run directory's lock.
func (e *entry) undo(run runDir) error {
	if e.ID != "" {
		if err := e.undoContainer(); err != nil {
			return fmt.Errorf("removing container %s: %w", e.ID, err)
		}
	}
	return e.forget(run)
}

// undoContainer ends the processes and removes cgroups, state and mounts.
func (e *entry) undoContainer() error {
	if err := killGroups(e.Cgroups); err != nil {
		return err
	}
	if err := e.stopAttendant(); err != nil {
		return err
	}
	if err := removeGroups(e.Cgroups); err != nil {
		return err
	}
	if err := os.RemoveAll(e.stateDir()); err != nil {
		return err
	}
	if e.Mounts == "" {
		return nil
	}
	return detachRoot(e.Mounts)
}

func (e *entry) stopAttendant() error {
	if e.Attendant == nil {
		return nil
	}
	return e.Attendant.stop()
}

// forget gives back what is claimed by name: the ids, and last the journal. With
// that the container is deleted, and its poststop hooks run.
func (e *entry) forget(run runDir) error {
	if e.Mounts != "" {
		err := unix.Rmdir(e.Mounts)
		if errors.Is(err, unix.EBUSY) { // who attended the container was killed over a change, see LayerOver
			err = errors.Join(detachRoot(e.Mounts), unix.Rmdir(e.Mounts))
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: e.Mounts, Err: err}
		}
	}
	if err := e.releaseIDs(run); err != nil {
		return err
	}
	if e.owner.keep(e.file, e.path) {
		e.file = nil
	} else if err := unix.Unlink(e.path); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "unlink", Path: e.path, Err: err}
	}
	e.release()
	e.poststop()
	return nil
}

// releaseIDs gives the range back if it is this entry's: a candidate that was
// written down may have turned out to be taken.
func (e *entry) releaseIDs(run runDir) error {
	if e.IDs.Size == 0 {
		return nil
	}
	link := e.IDs.file(run)
	its, err := os.Lstat(link)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ours, err := os.Lstat(e.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(its, ours) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(link)
}
