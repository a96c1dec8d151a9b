package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// FilePrograms is the LSM programs of lsm.bpf.c and their maps, which all guests
// of the host share. It is safe for use by several goroutines, and of no use
// without the kernel feature BPF-LSM: see [LoadFiles].
type FilePrograms struct {
	dir string // where they are pinned

	mu   sync.Mutex // guards maps
	maps bpf.LSMMaps
}

// LoadFiles attaches the programs to the host's LSM hooks and pins them, or finds
// those that are pinned there already. They hold nobody until a guest is attached,
// and stay until [CollectFiles] finds no guest. The error wraps [ErrNotSupported]
// when the host cannot do it.
func LoadFiles() (*FilePrograms, error) {
	object, spec, err := embeddedLSM()
	if err != nil {
		return nil, err
	}
	p := &FilePrograms{dir: pinDir(object)}
	lock, err := lockPins()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := p.open(spec); err != nil {
		return nil, err
	}
	return p, nil
}

// embeddedLSM is the object file that is pinned, and what is in it.
func embeddedLSM() (object []byte, spec *ebpf.CollectionSpec, err error) {
	object = bpf.LSMObject()
	if spec, err = bpf.LoadLSM(); err != nil {
		return nil, nil, fmt.Errorf("reading the embedded file programs: %w", err)
	}
	return object, spec, nil
}

// Close gives up this process's hold on the maps; what is attached stays.
func (p *FilePrograms) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.maps.Close(); err != nil {
		return fmt.Errorf("closing the file programs: %w", err)
	}
	return nil
}

// open finds the pinned programs, or loads, attaches and pins them. The caller
// holds the lock.
func (p *FilePrograms) open(spec *ebpf.CollectionSpec) error {
	whole, err := p.whole(spec)
	if err != nil {
		return err
	}
	if !whole {
		// What a killed process left of its loading never had a guest.
		if err := errors.Join(unpin(p.dir), p.load(spec)); err != nil {
			return err
		}
	}
	var maps bpf.LSMMaps
	for name, m := range mapsByName(&maps) {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(p.dir, name), nil); err != nil {
			return errors.Join(fmt.Errorf("opening pinned map %s: %w", name, err), maps.Close())
		}
	}
	p.maps = maps
	return nil
}

func mapsByName(m *bpf.LSMMaps) map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		"guests": &m.Guests, "denied": &m.Denied, "levels": &m.Levels, "buffers": &m.Buffers,
		"tables_small": &m.TablesSmall, "tables_medium": &m.TablesMedium, "tables_large": &m.TablesLarge, "tables_huge": &m.TablesHuge,
	}
}

// whole reports whether everything of the programs is pinned.
func (p *FilePrograms) whole(spec *ebpf.CollectionSpec) (bool, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for pinned programs: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for name := range spec.Programs {
		if !slices.Contains(names, linkPrefix+name) {
			return false, nil
		}
	}
	for name := range spec.Maps {
		if !slices.Contains(names, name) {
			return false, nil
		}
	}
	return true, nil
}

// load attaches and pins everything: links last, so that whoever finds all of
// them finds all.
func (p *FilePrograms) load(spec *ebpf.CollectionSpec) (err error) {
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("loading the file programs: %w", explainLSM(err))
	}
	defer collection.Close()
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return fmt.Errorf("pinning the file programs: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unpin(p.dir))
		}
	}()
	for name, m := range collection.Maps {
		if err := m.Pin(filepath.Join(p.dir, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, program := range collection.Programs {
		if err := pinLink(program, filepath.Join(p.dir, linkPrefix+name)); err != nil {
			return fmt.Errorf("attaching program %s: %w", name, explainLSM(err))
		}
	}
	return selfTest()
}

func pinLink(program *ebpf.Program, path string) error {
	l, err := link.AttachLSM(link.LSMOptions{Program: program})
	if err != nil {
		return err
	}
	return errors.Join(l.Pin(path), l.Close())
}

// selfTest asks the programs whether they are called at all: a kernel can take
// them although BPF is not among its active security modules.
func selfTest() error {
	const command, answer = 0x707369, unix.ENOTUNIQ // lsm.bpf.c has the same
	var attr [16]byte
	_, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == answer {
		return nil
	}
	return filesUnsupported("BPF among the active security modules", "add bpf to lsm= on the kernel's command line", errno)
}

// filesUnsupported says what the host lacks; cause may be nil.
func filesUnsupported(missing, wayOut string, cause error) error {
	err := fmt.Errorf("file rules cannot be held by BPF-LSM: %s is missing: %s: %w", missing, wayOut, ErrNotSupported)
	if cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// explainLSM is [explain] for LSM programs.
func explainLSM(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return filesUnsupported("leave to load LSM programs", "run as root of the host, on a kernel that permits them", err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return filesUnsupported("a kernel of at least Linux 6.1 with CONFIG_BPF_LSM and BTF", "run one, with bpf among lsm= on its command line", err)
	}
	return err
}
