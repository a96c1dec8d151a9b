package enforce

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// Commands of bpf(2).
const (
	bpfMapCreate      = 0
	bpfProgLoad       = 5
	bpfObjGetInfoByFD = 15
)

// nameLength is BPF_OBJ_NAME_LEN.
const nameLength = 16

// mapCreate is what union bpf_attr is to bpfMapCreate.
type mapCreate struct {
	kind, keySize, valueSize, maxEntries, flags uint32
	inner                                       uint32 // descriptor of a map like those that a map of maps has in it
	_                                           uint32 // NUMA node
	name                                        [nameLength]byte
}

// progLoad is what union bpf_attr is to bpfProgLoad.
type progLoad struct {
	kind, count           uint32
	instructions, license unsafe.Pointer
	_                     [6]uint32 // log, kernel version, flags
	name                  [nameLength]byte
	_                     uint32 // network interface
	attach                uint32
}

// bpfCall is bpf(2) with an attr of one of the types above; it returns a descriptor, if
// there is one to return.
func bpfCall[T any](command uintptr, attr *T) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// loadImage puts an image into the kernel. like are maps such as its maps of maps have in them.
func loadImage(image *bpf.Image, like *ownerMaps) (_ *ebpf.Collection, err error) {
	c := &ebpf.Collection{Maps: make(map[string]*ebpf.Map), Programs: make(map[string]*ebpf.Program)}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	fds := make([]int, len(image.Maps))
	for i, m := range image.Maps {
		var inner *ebpf.Map
		if m.Inner != nil {
			inner = *like.byName()[m.Name]
		}
		if c.Maps[m.Name], err = createMap(m, inner); err != nil {
			return nil, err
		}
		fds[i] = c.Maps[m.Name].FD()
	}
	for i := range image.Programs {
		p := &image.Programs[i]
		fd, err := loadProgram(p, fds)
		if err != nil {
			return nil, fmt.Errorf("loading program %s: %w", p.Name, err)
		}
		if c.Programs[p.Name], err = ebpf.NewProgramFromFD(fd); err != nil {
			return nil, fmt.Errorf("looking at program %s: %w", p.Name, err)
		}
	}
	return c, nil
}

// createMap makes an empty map. A map of maps takes those that are like inner.
func createMap(m bpf.MapImage, inner *ebpf.Map) (*ebpf.Map, error) {
	attr := mapCreate{kind: m.Type, keySize: m.KeySize, valueSize: m.ValueSize, maxEntries: m.MaxEntries, flags: m.Flags}
	copy(attr.name[:nameLength-1], m.Name)
	if inner != nil {
		attr.inner = uint32(inner.FD())
	}
	fd, err := bpfCall(bpfMapCreate, &attr)
	if err != nil {
		return nil, fmt.Errorf("creating map %s: %w", m.Name, err)
	}
	out, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("looking at map %s: %w", m.Name, err)
	}
	return out, nil
}

func loadProgram(p *bpf.ProgramImage, maps []int) (int, error) {
	instructions := append([]uint64{}, p.Instructions...)
	for _, r := range p.References {
		instructions[r.Instruction] |= uint64(maps[r.Map]) << 32 // the immediate
	}
	license := append([]byte(p.License), 0)
	attr := progLoad{
		kind: p.Type, attach: p.ExpectedAttachType,
		count: uint32(len(instructions)), instructions: unsafe.Pointer(&instructions[0]), license: unsafe.Pointer(&license[0]),
	}
	copy(attr.name[:nameLength-1], p.Name)
	for {
		// The verifier gives up for a signal, and Go's runtime sends some.
		if fd, err := bpfCall(bpfProgLoad, &attr); !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// programID is the number by which the kernel lists a program where it is attached.
func programID(program *ebpf.Program) (ebpf.ProgramID, error) {
	var info struct{ kind, id uint32 } // the beginning of struct bpf_prog_info
	attr := struct {
		fd, length uint32
		info       unsafe.Pointer
	}{uint32(program.FD()), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	if _, err := bpfCall(bpfObjGetInfoByFD, &attr); err != nil {
		return 0, fmt.Errorf("reading the number of program %s: %w", program, explain(err))
	}
	return ebpf.ProgramID(info.id), nil
}
