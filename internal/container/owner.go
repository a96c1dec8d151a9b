package container

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Owner is a directory for a process that makes many containers, and for what it
// keeps for them. While the process lives it holds a lock on it; when it dies, in
// whatever way, the kernel drops the lock, and GC removes the directory once it is
// empty. (The containers themselves are locked one by one, in their journals.)
type Owner struct {
	run  runDir
	dir  string
	lock *os.File // dir itself, flocked

	mu     sync.Mutex     // guards what follows
	uses   map[string]int // of cgroups that are made for many containers, by those of this owner
	spares []spare        // newest last
	kept   int            // how many journals there were among them
}

// spare is the journal of a container that has gone, empty and locked, in its owner's directory.
// Where the run directory is on a disk (ext4), to make a file takes longer the more were deleted
// in the last five seconds: half a millisecond at 150 containers a second.
type spare struct {
	file *os.File
	path string
}

// maxSpares bounds the journals that are kept.
const maxSpares = 64

// keep takes a journal that nobody needs any more; false if it is to be deleted.
func (o *Owner) keep(journal *os.File, path string) bool {
	if o == nil || journal == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lock == nil || len(o.spares) == maxSpares || journal.Truncate(0) != nil {
		return false
	}
	s := spare{journal, filepath.Join(o.dir, "@"+strconv.Itoa(o.kept))}
	if unix.Rename(path, s.path) != nil {
		return false
	}
	o.kept++
	o.spares = append(o.spares, s)
	return true
}

// journal makes the file at path, which must not exist, of a spare; nil if there is none.
func (o *Owner) journal(path string) (*os.File, error) {
	if o == nil {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.spares) - 1
	if n < 0 {
		return nil, nil
	}
	s := o.spares[n]
	o.spares = o.spares[:n]
	if err := unix.Renameat2(unix.AT_FDCWD, s.path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		_ = s.file.Close()
		_ = unix.Unlink(s.path)
		return nil, &os.PathError{Op: "rename", Path: path, Err: err}
	}
	return s.file, nil
}

// OpenOwner makes a new owner below dir ("" is DefaultRunDir).
func OpenOwner(dir string) (*Owner, error) {
	if dir == "" {
		dir = defaultRunDir()
	}
	run := runDir(dir)
	lock, err := run.share()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return newOwner(run)
}

// newOwner makes an owner. The caller holds the run directory's lock.
func newOwner(run runDir) (*Owner, error) {
	// 0711: guests walk through to their roots, and can list nothing.
	if err := mkdirMode(run.owners(), 0o711); err != nil {
		return nil, fmt.Errorf("making an owner's directory: %w", err)
	}
	for {
		o, err := tryOwner(run)
		if err != nil || o != nil {
			return o, err
		}
	}
}

// tryOwner makes and locks a directory. It returns nil if GC took it for a dead
// owner's in the moment between.
func tryOwner(run runDir) (*Owner, error) {
	var name [16]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, fmt.Errorf("naming an owner: %w", err)
	}
	dir := filepath.Join(run.owners(), hex.EncodeToString(name[:]))
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, fmt.Errorf("making an owner's directory: %w", err)
	}
	lock, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("making an owner's directory: %w", err)
	}
	gone, err := lockFile(lock, unix.LOCK_EX)
	if err != nil || gone {
		lock.Close()
		return nil, err
	}
	return &Owner{run: run, dir: dir, lock: lock}, nil
}

// takeOwner takes the owner at dir over, whose process must have died; ErrOwned
// if it has not.
func takeOwner(run runDir, dir string) (*Owner, error) {
	lock, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &Owner{run: run, dir: dir, lock: lock}, nil
	}
	lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrOwned
	}
	return nil, fmt.Errorf("locking owner %s: %w", dir, err)
}

// use notes that a container, or a zygote, is in common groups.
func (o *Owner) use(groups []string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.uses == nil {
		o.uses = make(map[string]int)
	}
	for _, dir := range groups {
		o.uses[dir]++
	}
}

// leave is the opposite, and tidies what nobody of this owner's uses any more.
func (o *Owner) leave(run runDir, groups []string) error {
	if o == nil {
		return run.tidy(groups)
	}
	var unused []string
	o.mu.Lock()
	for _, dir := range groups {
		if o.uses[dir]--; o.uses[dir] == 0 {
			delete(o.uses, dir)
			unused = append(unused, dir)
		}
	}
	o.mu.Unlock()
	if len(unused) == 0 {
		return nil
	}
	return run.tidy(unused)
}

// Dir is the owner's directory.
func (o *Owner) Dir() string { return o.dir }

// Close gives the directory up and removes it if it is empty.
func (o *Owner) Close() error {
	o.remove()
	return o.run.tidy(nil)
}

// remove deletes the directory if nothing is left in it but spares, and releases the lock.
func (o *Owner) remove() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.spares {
		s.file.Close()
	}
	o.spares = nil
	items, _ := os.ReadDir(o.dir) // also those of a dead one
	for _, item := range items {
		if strings.HasPrefix(item.Name(), "@") {
			_ = unix.Unlink(filepath.Join(o.dir, item.Name()))
		}
	}
	removed := unix.Rmdir(o.dir) == nil
	o.release()
	return removed
}

func (o *Owner) release() {
	if o.lock != nil {
		o.lock.Close()
		o.lock = nil
	}
}
