package enforce_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a guest of the file tests is asked to do, beside those of child_test.go. It
// is root with every capability and without a seccomp filter, so that nobody but the
// LSM programs stands in its way. Addr is a path.
func serveFile(req request) (reply, bool) {
	if req.Op == "opens" {
		return opens(req.Addr, req.For), true
	}
	// Each on a thread of its own that ends with it: some change the thread.
	answer, known := make(chan error), true
	go func() {
		runtime.LockOSThread()
		var err error
		err, known = fileOp(req)
		answer <- err
	}()
	err := <-answer
	return failed(req.Op, err), known
}

func fileOp(req request) (error, bool) {
	path := req.Addr
	switch req.Op {
	case "open":
		return closed(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)), true
	case "create":
		return closed(unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)), true
	case "execute":
		return run(path), true
	case "execute-memfd":
		return executeMemfd(), true
	case "mknod":
		return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), true
	case "mkfifo":
		return unix.Mkfifo(path, 0o600), true
	case "setxattr":
		return unix.Setxattr(path, "user.psi", []byte("x"), 0), true
	case "removexattr":
		return unix.Removexattr(path, "user.psi"), true
	case "set-flags", "set-attributes", "ioctl":
		return ioctlOp(req.Op, path), true
	case "protect":
		return protect(path), true
	case "mkdir":
		return unix.Mkdir(path, 0o755), true
	case "rmdir":
		return unix.Rmdir(path), true
	case "symlink":
		return unix.Symlink("x", path), true
	case "unlink":
		return unix.Unlink(path), true
	case "truncate":
		return unix.Truncate(path, 1), true
	case "chmod":
		return unix.Chmod(path, 0o600), true
	case "chown":
		return unix.Chown(path, 1, 1), true
	case "mount", "umount", "remount", "pivot_root", "move_mount", "chroot", "fsmount":
		return mountOp(req.Op, path), true
	case "new-mount-namespace": // and open there
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", syscall.ECANCELED), true
		}
		return closed(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)), true
	case "host-mount-namespace": // and open there
		return inHost(path), true
	case "receive":
		return receive(), true
	case "link": // two names, in a line each
		from, to, _ := strings.Cut(path, "\n")
		return unix.Link(from, to), true
	case "open-in-clone":
		return openInClone(path), true
	case "open-by-handle":
		return openByHandle(path), true
	case "child-cgroup-open":
		return inChildCgroup(path), true
	}
	return processOp(req)
}

// opens opens and closes a path n times, and says how many nanoseconds one took when the
// machine had the least else to do.
func opens(path string, n time.Duration) reply {
	const atOnce = 250
	best := time.Hour
	for range n / atOnce {
		start := time.Now()
		for range atOnce {
			if err := closed(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)); err != nil {
				return failed("opens", err)
			}
		}
		best = min(best, time.Since(start)/atOnce)
	}
	return reply{Counts: map[string]int{"ns": int(best)}}
}

func closed(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func run(path string) error {
	pid, err := syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{Env: []string{childEnv + "=nothing"}, Files: []uintptr{0, 2, 2}})
	if err == nil {
		_, err = syscall.Wait4(pid, nil, 0, nil)
	}
	return err
}

// protect makes what was mapped to be read executable.
func protect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", syscall.ECANCELED)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(fd, 0, 1, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", syscall.ECANCELED)
	}
	return errors.Join(unix.Mprotect(page, unix.PROT_READ|unix.PROT_EXEC), unix.Munmap(page))
}

func executeMemfd() error {
	fd, err := unix.MemfdCreate("x", 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	data, err := os.ReadFile("/bin/true")
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, data); err != nil {
		return err
	}
	return run(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func mountOp(op, path string) error {
	switch op {
	case "mount":
		return unix.Mount("none", path, "tmpfs", 0, "")
	case "umount":
		return unix.Unmount(path, unix.MNT_DETACH)
	case "remount":
		return unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND, "")
	case "pivot_root":
		return unix.PivotRoot(path, path)
	case "chroot":
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return unix.Chroot(path)
	case "fsmount":
		return fsmount()
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", syscall.ECANCELED)
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// fsmount makes a file system that is mounted nowhere yet.
func fsmount() error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", syscall.ECANCELED)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig: %w", err)
	}
	return closed(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0))
}

// inHost opens a path in the mount namespace of the machine's first process.
func inHost(path string) error {
	ns, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", syscall.ECANCELED)
	}
	return closed(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// receive takes the file descriptor that the parent sends over fd 3. The kernel cuts
// off what may not be received.
func receive() error {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, flags, _, err := unix.Recvmsg(3, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	if n == 0 || flags&unix.MSG_CTRUNC != 0 {
		return syscall.EACCES
	}
	return nil
}

// openInClone opens a path through a copy of the tree that its directory is in, which is
// mounted nowhere: there, the path is another.
func openInClone(path string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(path), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", syscall.ECANCELED)
	}
	defer unix.Close(tree)
	return closed(unix.Openat(tree, filepath.Base(path), unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// openByHandle opens a file without a path.
func openByHandle(path string) error {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return fmt.Errorf("name_to_handle_at: %w", syscall.ECANCELED)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the directory: %w", syscall.ECANCELED)
	}
	defer unix.Close(dir)
	return closed(unix.OpenByHandleAt(dir, handle, unix.O_RDONLY|unix.O_CLOEXEC))
}

// inChildCgroup opens a path from a cgroup below the guest's.
func inChildCgroup(path string) error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	_, at, _ := strings.Cut(strings.TrimSpace(string(own)), "0::")
	at, _, _ = strings.Cut(at, "\n")
	for _, top := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		dir := top + at + "/below"
		if err = os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			continue
		}
		if err = os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err != nil {
			return fmt.Errorf("moving: %w", syscall.ECANCELED)
		}
		defer os.WriteFile(top+at+"/cgroup.procs", []byte("0"), 0)
		return closed(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
	}
	return syscall.ECANCELED
}

func processOp(req request) (error, bool) {
	var attr [64]byte
	pointer := uintptr(unsafe.Pointer(&attr))
	var errno syscall.Errno
	switch req.Op {
	case "user-namespace":
		return run2(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}), true
	case "ptrace":
		return unix.PtraceSeize(os.Getppid()), true
	case "traceme":
		return run2(&syscall.SysProcAttr{Ptrace: true}), true
	case "bpf":
		_, _, errno = unix.Syscall(unix.SYS_BPF, 0, pointer, unsafe.Sizeof(attr)) // make a map
	case "perf":
		_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: unix.PERF_ATTR_SIZE_VER0}, 0, -1, -1, 0)
		return err, true
	case "init_module":
		return unix.InitModule(make([]byte, 4096), ""), true
	case "finit_module":
		fd, err := unix.Open("/proc/self/exe", unix.O_RDONLY, 0)
		if err != nil {
			return err, true
		}
		defer unix.Close(fd)
		return unix.FinitModule(fd, "", 0), true
	case "kexec":
		_, _, errno = unix.Syscall6(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0, 0, 0)
	case "kexec-file":
		fd, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err, true
		}
		defer unix.Close(fd)
		return unix.KexecFileLoad(fd, -1, "", unix.KEXEC_FILE_NO_INITRAMFS), true
	case "read-parent":
		local := unix.Iovec{Base: &attr[0], Len: 1}
		_, err := unix.ProcessVMReadv(os.Getppid(), []unix.Iovec{local}, []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
		return err, true
	case "write-parent":
		return closed(unix.Open(fmt.Sprintf("/proc/%d/mem", os.Getppid()), unix.O_RDWR|unix.O_CLOEXEC, 0)), true
	case "set-mm":
		_, _, errno = unix.Syscall6(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_EXE_FILE, 0, 0, 0, 0)
	case "prctl": // one that is nobody's business
		_, _, errno = unix.Syscall6(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0, 0, 0, 0, 0)
	default:
		return socketOp(req)
	}
	if errno != 0 {
		return errno, true
	}
	return nil, true
}

// run2 starts a process in a way that may be forbidden.
func run2(attr *syscall.SysProcAttr) error {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Sys: attr})
	if err != nil {
		return err
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	_, err = syscall.Wait4(pid, nil, 0, nil)
	return err
}

func socketOp(req request) (error, bool) {
	switch req.Op {
	case "socket":
		var family, kind, protocol int
		if _, err := fmt.Sscan(req.Addr, &family, &kind, &protocol); err != nil {
			return syscall.EINVAL, true
		}
		return closed(unix.Socket(family, kind, protocol)), true
	case "listen":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err, true
		}
		defer unix.Close(fd)
		return unix.Listen(fd, 1), true
	case "unix-connect", "unix-send":
		kind := unix.SOCK_STREAM
		if req.Op == "unix-send" {
			kind = unix.SOCK_DGRAM
		}
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		if err != nil {
			return err, true
		}
		defer unix.Close(fd)
		if req.Op == "unix-send" {
			return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrUnix{Name: req.Addr}), true
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: req.Addr}), true
	case "pairs":
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
			pair, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
			if err != nil {
				return err, true
			}
			if _, err := unix.Write(pair[0], []byte("x")); err != nil {
				return err, true
			}
			unix.Close(pair[0])
			unix.Close(pair[1])
		}
		return nil, true
	}
	return nil, false
}
