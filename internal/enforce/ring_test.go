package enforce_test

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/internal/enforce"
)

// TestHasKey: the answer of a lookup, without one.
func TestHasKey(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	ring := &ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 1 << 12}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.HashOfMaps, KeySize: 8, ValueSize: 4, MaxEntries: 16, InnerMap: ring})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	inner, err := ebpf.NewMap(ring)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	var there []uint64
	for _, added := range []uint64{0, 7, 1, 3, 1 << 40, 5} {
		for key := range uint64(10) {
			if got, want := enforce.HasKey(m, key), slices.Contains(there, key); got != want {
				t.Errorf("with %v, %d: %v", there, key, got)
			}
		}
		if err := m.Put(added, inner); err != nil {
			t.Fatal(err)
		}
		there = append(there, added)
	}
}

// TestFileRingsAreHandedOn: a process that begins takes the ring of one that has ended or was killed, unless
// guests are left that have it.
func TestFileRingsAreHandedOn(t *testing.T) {
	p := loadFiles(t)
	left := startFileGuest(t, p)
	own := ringOf(t, left)
	attachAndDie(t, left)
	killed := ringOf(t, left)
	if killed == own || killed == 0 {
		t.Fatalf("a process that was killed had ring %d, this one has %d", killed, own)
	}
	begin := func(name string, do func(ring uint64, g *fileGuest)) {
		t.Run(name, func(t *testing.T) {
			p, err := enforce.LoadFiles()
			if err != nil {
				t.Fatal(err)
			}
			g := startFileGuest(t, p)
			do(ringOf(t, g), g)
			if err := errors.Join(g.Close(), p.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	begin("while the guest is there", func(ring uint64, _ *fileGuest) {
		if ring == own || ring == killed {
			t.Errorf("ring %d is somebody else's", ring)
		}
		own = ring // spare from now on
	})
	if err := left.Update(left.files); err != nil { // it is ours again
		t.Fatal(err)
	}
	begin("of one that has ended", func(ring uint64, g *fileGuest) {
		if ring != own {
			t.Errorf("has ring %d, not the spare one, %d", ring, own)
		}
		begin("of one that was killed", func(ring uint64, g *fileGuest) {
			if ring != killed {
				t.Errorf("has ring %d, not that of the killed one, %d", ring, killed)
			}
			tells(t, g)
		})
		tells(t, g)
	})
}

func ringOf(t *testing.T, g *fileGuest) uint64 {
	t.Helper()
	ring, err := g.Ring()
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// tells has the guest be denied something, and waits until that is told.
func tells(t *testing.T, g *fileGuest) {
	t.Helper()
	var mu sync.Mutex
	var paths []string
	err := g.OnDenied(func(d enforce.Denial) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, d.Path)
	})
	if err != nil {
		t.Fatal(err)
	}
	g.ask("open", g.host+"/a.txt", syscall.EACCES)
	await(t, "the denial is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(paths, []string{g.host + "/a.txt"})
	})
}
