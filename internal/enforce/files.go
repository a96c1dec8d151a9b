package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// FilePrograms is the LSM programs of lsm.bpf.c and their maps, which all guests
// of the host share. It is safe for use by several goroutines, and of no use
// without the kernel feature BPF-LSM: see [LoadFiles].
type FilePrograms struct {
	dir string // where they are pinned

	mu      sync.Mutex // guards the fields below
	maps    bpf.LSMMaps
	denials *denials               // of the guests attached through maps
	ring    *ring                  // in which they are told of; nil before the first guest
	known   map[[32]byte]tableName // of rules that were compiled, by their digest
}

// LoadFiles attaches the programs to the host's LSM hooks and pins them, or finds
// those that are pinned there already. They hold nobody until a guest is attached,
// and stay until [Collect] finds no guest. The error wraps [ErrNotSupported]
// when the host cannot do it.
func LoadFiles() (*FilePrograms, error) { return loadFiles(pinDir(bpf.LSMObject())) }

func loadFiles(dir string) (*FilePrograms, error) {
	p := &FilePrograms{dir: dir}
	if _, err := os.Stat(p.dir); err != nil {
		if err := probeLSM(); err != nil {
			return nil, err
		}
	}
	lock, err := lockPins()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := p.open(); err != nil {
		return nil, err
	}
	return p, nil
}

// Close gives up this process's hold on the maps, and its ring to the next; what is attached stays.
func (p *FilePrograms) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.closeMaps(); err != nil {
		return fmt.Errorf("closing the file programs: %w", err)
	}
	return nil
}

func (p *FilePrograms) closeMaps() error {
	if p.denials != nil {
		p.denials.close()
	}
	return errors.Join(p.leaveRing(), p.maps.Close())
}

// open finds the pinned programs, or loads, attaches and pins them. The caller
// holds the lock.
func (p *FilePrograms) open() error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		if err := p.load(); err != nil {
			return err
		}
	}
	var maps bpf.LSMMaps
	for name, m := range mapsByName(&maps) {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(p.dir, name), nil); err != nil {
			return errors.Join(fmt.Errorf("opening pinned map %s: %w", name, err), maps.Close())
		}
	}
	p.maps, p.denials = maps, &denials{accounts: maps.Accounts}
	return p.forgetGone()
}

func mapsByName(m *bpf.LSMMaps) map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		"guests": &m.Guests, "accounts": &m.Accounts, "rings": &m.Rings, "depths": &m.Depths, "buffers": &m.Buffers,
		"tables_small": &m.TablesSmall, "tables_medium": &m.TablesMedium, "tables_large": &m.TablesLarge, "tables_huge": &m.TablesHuge,
	}
}

// load attaches and pins everything, in a directory that gets its name only when
// it is complete.
func (p *FilePrograms) load() (err error) {
	spec, err := bpf.LoadLSM()
	if err != nil {
		return fmt.Errorf("reading the embedded file programs: %w", err)
	}
	if err := dropNewHooks(spec); err != nil {
		return err
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("loading the file programs: %w", explainLSM(err))
	}
	defer collection.Close()
	incomplete := filepath.Join(pinRoot, "loading-"+filepath.Base(p.dir)) // no name here may have a dot
	// What a killed process left of its loading never had a guest.
	if err := unpin(incomplete); err != nil {
		return err
	}
	if err := os.Mkdir(incomplete, 0o700); err != nil {
		return fmt.Errorf("pinning the file programs: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unpin(incomplete))
		}
	}()
	for name, m := range collection.Maps {
		if err := m.Pin(filepath.Join(incomplete, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, program := range collection.Programs {
		if err := pinLink(program, filepath.Join(incomplete, linkPrefix+name)); err != nil {
			return fmt.Errorf("attaching program %s: %w", name, explainLSM(err))
		}
	}
	if err := selfTest(); err != nil {
		return err
	}
	if err := os.Rename(incomplete, p.dir); err != nil {
		return fmt.Errorf("pinning the file programs: %w", err)
	}
	return nil
}

// newHooks are not in every kernel that is supported. Where one is missing another has
// its effect, or there is no such call: before Linux 6.2 an ACL is an xattr, before 6.8
// the ioctls of 32-bit programs are those of all, before 6.17 there is no file_setattr.
func newHooks() []string {
	return []string{"inode_set_acl", "inode_remove_acl", "file_ioctl_compat", "inode_file_setattr"}
}

// dropNewHooks removes the programs of hooks that this kernel does not have.
func dropNewHooks(spec *ebpf.CollectionSpec) error {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return filesUnsupported("the kernel's type information", "run a kernel with CONFIG_DEBUG_INFO_BTF", err)
	}
	for _, hook := range newHooks() {
		var function *btf.Func
		if err := kernel.TypeByName("bpf_lsm_"+hook, &function); errors.Is(err, btf.ErrNotFound) {
			delete(spec.Programs, "psi_"+hook)
		}
	}
	return nil
}

// probeLSM asks for an impossible LSM program. The kernel's answer says at once
// whether it takes any, which reading its type information would take 100 ms for.
func probeLSM() error {
	active, err := os.ReadFile("/sys/kernel/security/lsm")
	if err == nil && !slices.Contains(strings.Split(strings.TrimSpace(string(active)), ","), "bpf") {
		return filesUnsupported("BPF among the active security modules", "add bpf to lsm= on the kernel's command line", nil)
	}
	instructions := [2]uint64{0xb7, 0x95} // r0 = 0; exit
	license := [4]byte{'G', 'P', 'L'}
	const typeLSM, attachLSM = 29, 27
	attr := progLoad{kind: typeLSM, count: 2, instructions: unsafe.Pointer(&instructions), license: unsafe.Pointer(&license), attach: attachLSM}
	_, err = bpfCall(bpfProgLoad, &attr)
	if errors.Is(err, unix.EPERM) {
		return explainLSM(err)
	}
	return nil // EINVAL: it names no hook
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
	_, err := bpfCall(command, &attr)
	if errors.Is(err, answer) {
		return nil
	}
	return filesUnsupported("BPF among the active security modules", "add bpf to lsm= on the kernel's command line", err)
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
