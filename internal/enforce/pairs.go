package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// An end of a pair of AF_UNIX datagram sockets can send to any socket that has a name, and
// connect to it. Since Linux 6.7 a cgroup's programs are asked each time that somebody gives
// a name, by a socket that was made in the cgroup: those of pairs.bpf.c refuse, whatever the
// name. What an end sends to its other end needs none.

// loadPairs finds those programs where the network programs are pinned, or puts them there. They
// tell the guest's denials as the others do, by the same maps.
func (p *Programs) loadPairs() (hooks []hook, err error) {
	defer func() {
		if err != nil {
			err, hooks = errors.Join(err, closeHooks(hooks)), nil
		}
	}()
	image, dir := bpf.PairsImage(), p.owner.version()
	own := map[string]*ebpf.Map{"guests": p.objects.Guests, "accounts": p.objects.Accounts, "events": p.objects.Events}
	maps := make([]int, len(image.Maps))
	for i, m := range image.Maps {
		maps[i] = own[m.Name].FD()
	}
	for i := range image.Programs {
		program, err := shared(dir, &image.Programs[i], maps)
		if err != nil {
			return hooks, err
		}
		h := hook{program: program, attach: ebpf.AttachType(image.Programs[i].ExpectedAttachType)}
		hooks = append(hooks, h)
		if hooks[i].id, err = programID(program); err != nil {
			return hooks, err
		}
	}
	return hooks, nil
}

// shared opens a program that is pinned in a directory, or loads it and pins it. Without a
// directory it is this process's.
func shared(dir string, image *bpf.ProgramImage, maps []int) (*ebpf.Program, error) {
	pin := filepath.Join(dir, image.Name)
	if dir != "" {
		program, err := ebpf.LoadPinnedProgram(pin, nil)
		if !errors.Is(err, os.ErrNotExist) {
			return program, err
		}
	}
	fd, err := loadProgram(image, maps)
	if err != nil {
		return nil, fmt.Errorf("loading program %s: %w", image.Name, err)
	}
	program, err := ebpf.NewProgramFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("looking at program %s: %w", image.Name, err)
	}
	// Where somebody was quicker, or the pins have just been removed, this one does as well.
	if dir != "" {
		if err := program.Pin(pin); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("pinning program %s: %w", image.Name, err), program.Close())
		}
	}
	return program, nil
}

func closeHooks(hooks []hook) error {
	var errs []error
	for _, h := range hooks {
		errs = append(errs, h.program.Close())
	}
	return errors.Join(errs...)
}

// ProbePairs says why this kernel cannot do what [Programs.HoldPairs] does; nil if it can. It asks
// with a program that does nothing, and takes some 0.1 ms.
func ProbePairs() error {
	const readKernel = 113 // bpf_probe_read_kernel
	license := [4]byte{'G', 'P', 'L'}
	instructions := [...]uint64{
		0xa1bf, 0xfffffff8_00000107, // r1 = r10 - 8
		0x8_000002b7, 0x3b7, // 8 bytes, from nowhere
		readKernel<<32 | 0x85,
		0xb7, 0x95, // no
	}
	attr := progLoad{
		kind: uint32(ebpf.CGroupSockAddr), attach: uint32(ebpf.AttachCgroupUnixConnect),
		count: uint32(len(instructions)), instructions: unsafe.Pointer(&instructions), license: unsafe.Pointer(&license),
	}
	fd, err := bpfCall(bpfProgLoad, &attr)
	if err != nil {
		return pairsUnsupported(err)
	}
	return unix.Close(fd)
}

func pairsUnsupported(cause error) error {
	return &NotSupportedError{"a hook for the names of unix sockets", "run Linux 6.7 or newer, as root of the host", cause}
}

// HoldsPairs reports whether HoldPairs can do it on this kernel.
func (p *Programs) HoldsPairs() bool {
	p.pairsOnce.Do(func() { p.pairs, p.pairsErr = p.loadPairs() })
	return p.pairsErr == nil
}

// HoldPairs has every AF_UNIX socket that is made in the cgroup2 directory, from now on,
// reach nobody by a name, for as long as the cgroup exists. It is for guests that can make
// no such socket but pairs: others would lose their own. What is refused is told as the other
// denials of a guest that is attached at the cgroup.
func (p *Programs) HoldPairs(cgroupDir string) error {
	if !p.HoldsPairs() {
		return pairsUnsupported(p.pairsErr)
	}
	dir, _, err := openCgroup2(cgroupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return attachAll(dir, p.pairs)
}
