package container

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
)

//go:generate clang -O2 -Wall -Wextra -Werror -std=gnu11 -I/usr/include/python3.11 -fPIC -fvisibility=hidden -fno-builtin -fno-stack-protector -fno-asynchronous-unwind-tables -fno-ident -shared -nostdlib -Wl,--build-id=none,-z,relro,-z,now,--hash-style=gnu,--strip-all -o zygote/zygote_amd64.so zygote/zygote.c

// A Zygote is a warm interpreter that guests are forked from. A guest made by it is what
// libcontainer would have made of the same specification, without a program being started:
//
//	supervisor                         zygote                guest
//	order, channel, stderr, sync ────► clone3 ─────────────► in new namespaces, waits
//	makes journal, cgroups, a root
//	◄──────────────────────── pidfd ──┘
//	maps ids, joins cgroups
//	m ─────────────────────────────────────────────────────► takes the ids, cgroup namespace,
//	◄──────────────────────────────────────────── p, proc ── host name, limits, mounts a /proc
//	puts its root together (assembly),                       begins its session, in memory
//	whatever else has to be before it lives
//	◄───────────────────────────────────────────────────── s
//	g ─────────────────────────────────────────────────────► no capabilities, filter; is an agent
//	                                                         that waits
//
// The zygote runs as a user of its own from psi's range, without any capability, in mount, network
// and ipc namespaces of its own. It is a process of the caller's user namespace, so that the
// caller can write the id maps of its children; and they are the caller's children (CLONE_PARENT),
// which outlive it. It runs no code of a guest. What guests of one zygote share, SECURITY.md says.
type Zygote struct {
	run     runDir
	process *os.Process

	mu      sync.Mutex // guards control, and one order at a time
	control *os.File

	place   sync.Mutex // guards what follows
	entry   entry
	parents map[string]string // of its guests' cgroups, by controller
	devices []string          // the v1 group with their device rules, which they share; nil without v1

	roots sync.Mutex // one root at a time on entry.Mounts
	stuck error      // one cannot be detached
}

//go:embed zygote/zygote_amd64.so
var zygoteModule []byte

// zygoteModulePath is the path of the zygote's C part in the zygote's root; the agent knows it.
const zygoteModulePath = "/usr/lib/psi/_zygote.so"

// ZygoteOptions say what to make a zygote of.
type ZygoteOptions struct {
	ID     string
	Owner  *Owner
	Rootfs string   // host directory
	Layer  string   // laid over it, see MountLayer; "" is none
	Args   []string // of the interpreter, its path first: as a guest's
	Env    []string // as a guest's
	Stderr *os.File
}

// zygotePatience is how long a zygote may take to start, and to answer.
const zygotePatience = 20 * time.Second

// StartZygote starts a zygote and returns when it is ready. It ends with this process's pid
// namespace, or by Close.
func StartZygote(o ZygoteOptions) (_ *Zygote, err error) {
	z := &Zygote{run: o.Owner.run, entry: entry{
		ID: o.ID, Root: o.Owner.dir, Created: time.Now().UTC(), IDs: idRange{Size: 1}, path: o.Owner.run.journalPath(o.Owner.dir, o.ID), owner: o.Owner,
	}}
	z.entry.Mounts = z.entry.path + ".root"
	var undo undoStack
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("starting a zygote: %w", err), undo.run())
		}
	}()
	if err := z.entry.claim(); err != nil {
		return nil, err
	}
	undo.add(func() error { return z.entry.undo(z.run) })
	claim := Container{id: o.ID, run: z.run, auto: true, entry: z.entry}
	err = claim.claimIDs()
	z.entry = claim.entry
	if err != nil {
		return nil, err
	}
	uid := int(z.entry.IDs.First)
	lower := []string{o.Rootfs}
	if o.Layer != "" {
		lower = []string{o.Layer, o.Rootfs}
	}
	if err := os.Mkdir(z.entry.Mounts, rootMode); err != nil {
		return nil, err
	}
	if err := mountRoot(z.entry.Mounts, z.entry.Mounts, lower, false, uid); err != nil {
		return nil, err
	}
	if err := fillRoot(z.entry.Mounts, zygotePoints(), map[string][]byte{zygoteModulePath: zygoteModule}); err != nil {
		return nil, err
	}
	ours, theirs, err := seqpacket("zygote")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	z.control = ours
	undo.add(ours.Close)
	if z.process, err = z.start(o, theirs); err != nil {
		return nil, err
	}
	undo.add(func() error { _ = z.process.Kill(); _, _ = z.process.Wait(); return nil })
	if err := detachRoot(z.entry.Mounts); err != nil {
		return nil, err
	}
	return z, z.await()
}

// zygoteDevices are the host's devices that guests have too.
func zygoteDevices() []string {
	return []string{"null", "zero", "full", "random", "urandom", "tty"}
}

func zygotePoints() []MountPoint {
	points := []MountPoint{{"/proc", true}, {assemblyRoot, true}, {"/dev", true}}
	for _, name := range zygoteDevices() {
		points = append(points, MountPoint{Path: "/dev/" + name})
	}
	return points
}

// seqpacket makes a pair of sockets that keep messages apart.
func seqpacket(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	limit := unix.NsecToTimeval(zygotePatience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name+"'s end"), nil
}

// start starts the interpreter from a thread that has made the zygote's mount namespace, and
// ends with it.
func (z *Zygote) start(o ZygoteOptions, control *os.File) (*os.Process, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	type result struct {
		process *os.Process
		err     error
	}
	done := make(chan result, 1)
	uid := z.entry.IDs.First
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := zygoteMounts(z.entry.Mounts); err != nil {
			done <- result{nil, err}
			return
		}
		process, err := os.StartProcess(o.Args[0], o.Args, &os.ProcAttr{
			Dir: "/", Env: o.Env, Files: []*os.File{null, null, o.Stderr, control},
			Sys: &syscall.SysProcAttr{
				Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
				Credential: &syscall.Credential{Uid: uid, Gid: uid}, Setsid: true,
			},
		})
		done <- result{process, err}
	}()
	r := <-done
	return r.process, r.err
}

// zygoteMounts gives the calling thread a mount namespace with what is mounted on root, a /proc
// (without a whole one the kernel would let no guest mount its own), and devices for guests.
func zygoteMounts(root string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// hidepid: what runs beside it is none of its business.
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", flags, "hidepid=2"); err != nil {
		return &os.PathError{Op: "mount proc", Path: root, Err: err}
	}
	for _, name := range zygoteDevices() {
		if err := bind("/dev/"+name, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	if err := remount(root, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY); err != nil {
		return err
	}
	return pivot(root)
}

// await takes the zygote's first word.
func (z *Zygote) await() error {
	var word [1]byte
	if _, n, err := receiveFD(int(z.control.Fd()), word[:]); err != nil || n != 1 || word[0] != 'r' {
		return fmt.Errorf("it did not become ready: %w", errors.Join(err, z.ended()))
	}
	return nil
}

func (z *Zygote) ended() error { return errors.New("the interpreter has ended, or does not answer") }

// Close ends the zygote. Its guests go on.
func (z *Zygote) Close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.control == nil {
		return nil
	}
	_ = z.control.Close()
	z.control = nil
	_ = z.process.Kill()
	_, err := z.process.Wait()
	z.roots.Lock()
	defer z.roots.Unlock()
	z.place.Lock()
	defer z.place.Unlock()
	return errors.Join(err, z.entry.forget(z.run), z.entry.owner.leave(z.run, z.entry.commonGroups()))
}

// The parts of an order, as zygote.c has them.
const (
	maxLimits    = 8
	hostNameSize = 64
)

// order writes what the zygote is told of a guest.
func order(filter []byte, limits []configs.Rlimit, hostname string) ([]byte, error) {
	if len(limits) > maxLimits || len(hostname) >= hostNameSize {
		return nil, fmt.Errorf("a zygote sets %d limits and a host name of %d bytes at the most", maxLimits, hostNameSize-1)
	}
	out := binary.NativeEndian.AppendUint32(nil, uint32(len(filter)))
	out = binary.NativeEndian.AppendUint32(out, uint32(len(limits)))
	for i := range maxLimits {
		var resource, value uint64
		if i < len(limits) {
			if limits[i].Hard != limits[i].Soft {
				return nil, fmt.Errorf("a zygote sets no limit with %d and %d", limits[i].Soft, limits[i].Hard)
			}
			resource, value = uint64(limits[i].Type), limits[i].Hard
		}
		out = binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(out, resource), value)
	}
	out = append(out, hostname...)
	out = append(out, make([]byte, hostNameSize-len(hostname))...)
	return append(out, filter...), nil
}

// makeRoot makes a guest's root, attached to nothing. The next one waits until this one is off
// the zygote's directory; nobody else has to.
func (z *Zygote) makeRoot(c *Container, o *CreateOptions) (root *os.File, err error) {
	z.roots.Lock()
	if z.stuck != nil {
		z.roots.Unlock()
		return nil, z.stuck
	}
	dir := z.entry.Mounts
	defer func() {
		go func() {
			defer z.roots.Unlock()
			z.stuck = detachRoot(dir)
		}()
	}()
	at := filepath.Join(dir, "root")
	if err := c.mountRoot(dir, at, o); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// fork has the zygote make a child, and returns what waits for its pidfd, which must be called. The
// zygote is asked at once, if nobody else asks it: while this thread is the only one that runs the
// kernel wakes it on another processor. A thread that is woken to ask would be there already.
func (z *Zygote) fork(order []byte, channel, stderr, sync *os.File) (wait func() (*os.File, error)) {
	ask := func() (*os.File, error) {
		if z.control == nil {
			return nil, os.ErrClosed
		}
		rights := unix.UnixRights(int(channel.Fd()), int(stderr.Fd()), int(sync.Fd()))
		if err := unix.Sendmsg(int(z.control.Fd()), order, rights, nil, unix.MSG_NOSIGNAL); err != nil {
			return nil, fmt.Errorf("asking the zygote: %w", err)
		}
		return z.control, nil
	}
	if !z.mu.TryLock() {
		return func() (*os.File, error) {
			z.mu.Lock()
			defer z.mu.Unlock()
			return z.answer(ask())
		}
	}
	control, err := ask()
	return func() (*os.File, error) {
		defer z.mu.Unlock()
		return z.answer(control, err)
	}
}

// answer takes the pidfd of the child that the zygote was asked for, if it was.
func (z *Zygote) answer(control *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	var failed [4]byte
	fds, n, err := receiveFD(int(control.Fd()), failed[:])
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking the zygote: %w", err)
	case n != len(failed):
		return nil, fmt.Errorf("asking the zygote: %w", z.ended())
	case fds == nil:
		return nil, fmt.Errorf("forking a guest: %w", unix.Errno(binary.NativeEndian.Uint32(failed[:])))
	}
	return fds, nil
}

// CompileFilter makes the program of a specification's seccomp filter; nil if it has none.
func CompileFilter(s *specs.Spec) ([]byte, error) {
	if s.Linux == nil || s.Linux.Seccomp == nil {
		return nil, nil
	}
	return confine.Program(s.Linux.Seccomp)
}

// receiveFD receives a message that may carry one descriptor.
func receiveFD(socket int, buf []byte) (file *os.File, n int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		size, oobn, _, _, err := unix.Recvmsg(socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || oobn == 0 {
			return nil, size, err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			return nil, size, err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return nil, size, err
		}
		return os.NewFile(uintptr(fds[0]), "received"), size, nil
	}
}
