package enforce_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers that golang.org/x/sys does not have, on machines of 64 bits.
const (
	getFileAttributes = 0x801c581f
	setFileAttributes = 0x401c5820
	noDump            = 0x40       // FS_NODUMP_FL
	noDumpAttribute   = 0x00000080 // FS_XFLAG_NODUMP
)

// TestFileIoctls changes files through descriptors that were opened to be read, which the
// kernel asks nothing but whose they are.
func TestFileIoctls(t *testing.T) {
	p := loadFiles(t)
	elsewhere := newCgroup(t)
	g := startFileGuest(t, p)
	readable := filepath.Join(filepath.Dir(g.own), "readable")
	if err := os.WriteFile(readable, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(readable)
	changes := []string{"set-flags", "set-attributes"}
	// Those that this file system does not do: a version, encryption, migration, verity, snapshots.
	others := map[string]string{"40087602": readable, "800c6613": dir, "6609": readable, "660c": readable, "40806685": readable, "50009401": dir, "5000940f": dir}
	for _, op := range changes {
		g.ask(op, readable, syscall.EACCES)
		g.ask(op, g.host+"/a.csv", 0)
	}
	for number, path := range others {
		g.ask("ioctl", number+" "+path, syscall.EACCES)
	}
	// Questions: a terminal, flags, a version, attributes, no part of the place on the disk.
	for number, want := range map[string]syscall.Errno{"5401": syscall.ENOTTY, "80086601": 0, "80087601": 0, "801c581f": 0, "c020660b": syscall.EINVAL} {
		g.ask("ioctl", number+" "+readable, want)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, g, elsewhere)
	for _, op := range changes {
		g.ask(op, readable, 0)
	}
	for number, path := range others {
		if r := g.do(request{Op: "ioctl", Addr: number + " " + path}); r.Errno == syscall.EACCES || r.Errno == syscall.EPERM {
			t.Errorf("ioctl %s is refused without rules too: %v", number, r.Errno)
		}
	}
}

// ioctlOp does an ioctl at a file that is open to be read. "set-…" are seen to work.
func ioctlOp(op, path string) error {
	var number uintptr
	if op == "ioctl" { // "NUMBER PATH"
		if _, err := fmt.Sscanf(path, "%x %s", &number, &path); err != nil {
			return err
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", syscall.ECANCELED)
	}
	defer unix.Close(fd)
	var argument [4096]byte
	word := (*uint32)(unsafe.Pointer(&argument))
	get, set, bit := uintptr(unix.FS_IOC_GETFLAGS), uintptr(unix.FS_IOC_SETFLAGS), uint32(noDump)
	switch op {
	case "ioctl":
		return ioctl(fd, number, &argument)
	case "set-attributes":
		get, set, bit = getFileAttributes, setFileAttributes, noDumpAttribute
	}
	if err := ioctl(fd, get, &argument); err != nil {
		return fmt.Errorf("reading first: %w", syscall.ECANCELED)
	}
	*word ^= bit
	want := *word
	if err := ioctl(fd, set, &argument); err != nil {
		return err
	}
	if err := ioctl(fd, get, &argument); err != nil || *word != want {
		return fmt.Errorf("reading again: %w", errors.Join(err, syscall.ECANCELED))
	}
	return nil
}

func ioctl(fd int, number uintptr, argument *[4096]byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), number, uintptr(unsafe.Pointer(argument))); errno != 0 {
		return errno
	}
	return nil
}
