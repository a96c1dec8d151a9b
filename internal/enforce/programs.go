package enforce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// Programs is the eBPF programs and maps in the kernel. The programs are shared by all guests of
// the host, what they look up by those of this process. It is safe for use by several goroutines.
type Programs struct {
	objects bpf.NetObjects
	owner   *owner // the maps of this process
	hooks   []hook

	pairsOnce sync.Once
	pairs     []hook // see HoldPairs; none before Linux 6.7
	pairsErr  error  // why there are none

	denials denials
	eraser  sync.WaitGroup

	mu         sync.Mutex        // guards the fields below
	lastPolicy uint64            // numbers are never used again
	tables     map[string]*table // that guests have, by what they say
	retired    []*table          // out of use, still in the maps
	erasing    bool              // somebody will look at retired again
}

// hook is a program and the place of a cgroup where it belongs.
type hook struct {
	program *ebpf.Program
	attach  ebpf.AttachType
	id      ebpf.ProgramID
}

// Load finds the host's programs, or puts them into the kernel, attached to nothing. The error wraps
// [ErrNotSupported] when the host lacks something.
func Load() (*Programs, error) { return load(netDir()) }

func load(dir string) (*Programs, error) {
	// Nobody who had our maps before us has used these numbers.
	p := &Programs{tables: make(map[string]*table), lastPolicy: rand.Uint64() >> 1}
	err := p.loadShared(dir)
	if cannotPin(err) {
		err = p.loadAlone()
	}
	if err != nil {
		return nil, fmt.Errorf("loading the network programs: %w", explain(err))
	}
	o := &p.objects
	p.denials.ring, p.denials.accounts, p.denials.owner = p.owner.maps.events, o.Accounts, p.owner.number
	p.hooks = []hook{
		{program: o.Connect4, attach: ebpf.AttachCGroupInet4Connect},
		{program: o.Connect6, attach: ebpf.AttachCGroupInet6Connect},
		{program: o.Sendmsg4, attach: ebpf.AttachCGroupUDP4Sendmsg},
		{program: o.Sendmsg6, attach: ebpf.AttachCGroupUDP6Sendmsg},
		{program: o.Bind4, attach: ebpf.AttachCGroupInet4Bind},
		{program: o.Bind6, attach: ebpf.AttachCGroupInet6Bind},
		{program: o.SockCreate, attach: ebpf.AttachCGroupInetSockCreate},
	}
	for i, h := range p.hooks {
		id, err := programID(h.program)
		if err != nil {
			p.Close()
			return nil, err
		}
		p.hooks[i].id = id
	}
	return p, nil
}

// loadAlone is for a host without a place for pins: the programs are this process's.
func (p *Programs) loadAlone() error {
	p.owner = &owner{}
	err := p.owner.maps.create()
	if err == nil {
		err = loadNet(&p.objects, &p.owner.maps)
	}
	if err == nil {
		err = p.owner.give(&p.objects)
	}
	if err != nil {
		return errors.Join(err, p.owner.close(), p.objects.Close())
	}
	return nil
}

// loadNet loads the image. If the kernel refuses anything, the library that reads the object
// file tries too: it finds out why. like are maps of an owner.
func loadNet(to *bpf.NetObjects, like *ownerMaps) error {
	collection, err := loadImage(bpf.NetImage(), like)
	if err == nil {
		defer collection.Close()
		return collection.Assign(to)
	}
	spec, err := bpf.LoadNet()
	if err != nil {
		return fmt.Errorf("reading the embedded network programs: %w", err)
	}
	dropDebugInfo(spec)
	return spec.LoadAndAssign(to, nil)
}

// dropDebugInfo removes the type and line information. Nothing here needs it in
// the kernel, and putting it there takes half of the time of loading.
func dropDebugInfo(spec *ebpf.CollectionSpec) {
	for _, m := range spec.Maps {
		for ; m != nil; m = m.InnerMap {
			m.Key, m.Value = nil, nil
		}
	}
	for _, program := range spec.Programs {
		for i, ins := range program.Instructions {
			reference, symbol := ins.Reference(), ins.Symbol()
			ins.Metadata = asm.Metadata{}
			if reference != "" {
				ins = ins.WithReference(reference)
			}
			if symbol != "" {
				ins = ins.WithSymbol(symbol)
			}
			program.Instructions[i] = ins
		}
	}
}

// Close gives up this process's hold on the programs. Guests that still run stay
// held to their policy as it is, and can no longer be updated: close them first.
func (p *Programs) Close() error {
	p.eraser.Wait()
	p.denials.close()
	p.mu.Lock()
	idle := len(p.tables) == 0
	p.mu.Unlock()
	var err error
	if idle {
		err = p.owner.release(&p.objects)
	}
	if err := errors.Join(err, p.owner.close(), p.objects.Close(), closeHooks(p.pairs)); err != nil {
		return fmt.Errorf("closing the network programs: %w", err)
	}
	return nil
}

// nextPolicy returns a policy number that no guest ever had.
func (p *Programs) nextPolicy() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastPolicy++
	return p.lastPolicy
}

// openCgroup2 opens a directory of the cgroup2 hierarchy, the only one at which
// these programs can be attached.
func openCgroup2(dir string) (*os.File, uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the guest's cgroup: %w", err)
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st)); err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("looking at the guest's cgroup %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		f.Close()
		return nil, 0, &NotSupportedError{"cgroup2", "mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), " + dir + " is no directory of it", nil}
	}
	return f, st.Ino, nil // the inode number is the cgroup's id
}
