package attend

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// place is all of a container that a reload touches: a cgroup and a network namespace,
// with nobody in them.
type place struct {
	dir   string
	netns *os.File
}

func (p place) UnifiedCgroup() (string, error) { return p.dir, nil }

func (p place) NetNS() (*os.File, error) {
	fd, err := unix.Dup(int(p.netns.Fd()))
	return os.NewFile(uintptr(fd), "netns"), err
}

func (place) KillCgroup() error               { return nil }
func (place) MountNamespace() (uint32, error) { return 1, nil }
func (place) CPU() (time.Duration, error)     { return time.Millisecond, nil }
func (place) Throttled() (uint64, error)      { return 0, nil }
func (place) CPUGroup() string                { return "" }
func (place) OOMKills() (uint64, error)       { return 0, nil }
func (place) Forked() bool                    { return false }

func (place) OOMEvents(context.Context) (<-chan uint64, error) { return nil, nil }

// newPlace makes one below the root of the cgroup2 hierarchy.
func newPlace(b *testing.B, name string) place {
	b.Helper()
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	p := place{dir: filepath.Join(root, fmt.Sprintf("psi-bench-%d-%s", os.Getpid(), name))}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.Remove(p.dir) })
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			p.netns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.netns.Close() })
	return p
}

// BenchmarkReload puts another policy into force in 1,000 guests: other endpoints in the
// kernel's tables and the proxy, in parallel, as a supervisor does for one request.
func BenchmarkReload(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: cgroups and network namespaces")
	}
	const guests = 1000
	programs, err := enforce.Load()
	if err != nil {
		b.Fatal(err)
	}
	defer programs.Close()
	var policies [2]policy.Policy
	for i, text := range []string{`{tcp: ["127.0.0.1:9200", "10.0.0.0/8:443"]}`, `{tcp: ["127.0.0.1:9200"], wall_ms: 3600000}`} {
		if policies[i], err = policy.Parse([]byte(text), "bench"); err != nil {
			b.Fatal(err)
		}
	}
	all := make([]*Attendant, guests)
	for i := range all {
		if all[i], err = Start(newPlace(b, fmt.Sprint(i)), policies[0], Options{Programs: programs, OnEvent: func(Event) {}}); err != nil {
			b.Fatal(err)
		}
	}
	defer func() {
		for _, a := range all {
			_ = a.Close()
		}
	}()
	round := 0
	for b.Loop() {
		round++
		next := policies[round%2]
		var wait sync.WaitGroup
		slots := make(chan struct{}, 2*runtime.NumCPU())
		for _, a := range all {
			slots <- struct{}{}
			wait.Go(func() {
				if err := a.Update(next); err != nil {
					b.Error(err)
				}
				<-slots
			})
		}
		wait.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/guests, "µs/guest")
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/1000guests")
}
