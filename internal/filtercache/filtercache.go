// Package filtercache keeps compiled seccomp filters. libseccomp takes 15 to 20 ms
// for one as long as what engines give containers by default, each time, and the same
// few come again and again.
//
// libcontainer compiles a filter in the container's first process (and in each that
// exec starts), where nothing of the host can be reached any more. So that process
// reads what is there before, while it is still in the host's mounts ([Load]), and
// uses the program that belongs to exactly the calls that libcontainer makes of
// libseccomp (memo.c). The runtime outside adds what it did not find ([Save]).
//
// The directory is as trusted as the rest of the run directory: its owner's alone.
package filtercache

/*
#cgo pkg-config: libseccomp
#cgo CFLAGS: -D_GNU_SOURCE
#cgo LDFLAGS: -Wl,-wrap,seccomp_init -Wl,-wrap,seccomp_release -Wl,-wrap,seccomp_reset -Wl,-wrap,seccomp_merge
#cgo LDFLAGS: -Wl,-wrap,seccomp_arch_add -Wl,-wrap,seccomp_arch_remove -Wl,-wrap,seccomp_attr_set
#cgo LDFLAGS: -Wl,-wrap,seccomp_syscall_priority -Wl,-wrap,seccomp_rule_add_array
#cgo LDFLAGS: -Wl,-wrap,seccomp_rule_add_exact_array -Wl,-wrap,seccomp_load
#cgo LDFLAGS: -Wl,-wrap,seccomp_export_bpf -Wl,-wrap,seccomp_export_pfc
#include <stdlib.h>
#include "memo.h"
*/
import "C"

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

const (
	most     = 8       // files that are kept, the newest
	maxRules = 2048    // of a filter that is worth keeping: engines' have 400
	maxSize  = 1 << 20 // bytes of a file, which that many rules do not reach
	magic    = "psi filter 1\n"
)

// Load has this thread know the filters in dir. Whatever it cannot read, or is not its
// owner's alone, it does without. No descriptor stays open.
func Load(dir string) {
	d, err := open(unix.AT_FDCWD, dir, unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer d.Close()
	names, err := d.Readdirnames(4 * most)
	if err != nil {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue // somebody is writing it
		}
		if log, program, err := read(d, name); err == nil {
			C.memo_know(C.CBytes(log), C.size_t(len(log)), C.CBytes(program), C.size_t(len(program)))
		}
	}
}

// open opens what belongs to this user, and nobody else may write to.
func open(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0) {
		err = fmt.Errorf("%s: others may write to it", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read reads a file that encode made.
func read(dir *os.File, name string) (log, program []byte, err error) {
	f, err := open(int(dir.Fd()), name, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, nil, err
	}
	const head = len(magic) + 8
	if len(data) < head || len(data) > maxSize || string(data[:len(magic)]) != magic {
		return nil, nil, fmt.Errorf("%s: no filter of this version", name)
	}
	logSize := uint64(binary.NativeEndian.Uint32(data[len(magic):]))
	programSize := uint64(binary.NativeEndian.Uint32(data[len(magic)+4:]))
	if data = data[head:]; logSize+programSize != uint64(len(data)) {
		return nil, nil, fmt.Errorf("%s: it is cut off", name)
	}
	return data[:logSize], data[logSize:], nil
}

func encode(log, program []byte) []byte {
	data := binary.NativeEndian.AppendUint32([]byte(magic), uint32(len(log)))
	data = binary.NativeEndian.AppendUint32(data, uint32(len(program)))
	return append(append(data, log...), program...)
}

// Save compiles filter and keeps it in dir, unless it is there or too large.
func Save(dir string, filter *configs.Seccomp) error {
	if len(filter.Syscalls) > maxRules {
		return nil
	}
	name, err := nameOf(filter)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, program, err := compile(filter)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it has been renamed, if all went well
	if _, err = f.Write(encode(log, program)); err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	return errors.Join(err, prune(dir))
}

// nameOf is the name of a filter's file: of what was asked for, and of whom.
func nameOf(filter *configs.Seccomp) (string, error) {
	text, err := json.Marshal(filter)
	if err != nil {
		return "", fmt.Errorf("encoding a seccomp filter: %w", err)
	}
	major, minor, micro := seccomp.Version()
	digest := sha256.Sum256(fmt.Appendf(text, " libseccomp %d.%d.%d", major, minor, micro))
	return hex.EncodeToString(digest[:16]), nil
}

// prune removes the oldest of too many.
func prune(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) <= most {
		return err
	}
	age := func(e os.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0 // it has gone
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return int(min(max(age(a)-age(b), -1), 1)) })
	for _, e := range entries[:len(entries)-most] {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// compile has libcontainer make a filter as it does in a container, up to where it
// would load it, and returns the calls that it made and the program.
func compile(filter *configs.Seccomp) (log, program []byte, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	log, program, _, err = compiled(filter)
	return log, program, err
}

// compiled is compile on a thread that may know filters, and tells whether this was one of them.
func compiled(filter *configs.Seccomp) (log, program []byte, hit bool, err error) {
	defer C.memo_forget()
	C.memo_record()
	_, err = seccomp.InitSeccomp(filter)
	var size C.size_t
	if p := C.memo_program(&size); p != nil {
		program = copyOf(p, size)
	}
	if len(program) == 0 {
		return nil, nil, false, fmt.Errorf("compiling a seccomp filter: %w", err)
	}
	p := C.memo_log(&size)
	return copyOf(p, size), program, C.memo_hit() != 0, nil
}

func copyOf(p unsafe.Pointer, size C.size_t) []byte {
	return slices.Clone(unsafe.Slice((*byte)(p), int(size)))
}
