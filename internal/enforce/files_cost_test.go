package enforce_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/policy"
)

// TestFileCost compares open and close of a guest that is held with one that is not,
// in turn. On the emulated kernel time is the number of instructions, near enough.
func TestFileCost(t *testing.T) {
	p := loadFiles(t)
	held, free := startFileGuest(t, p), startFileGuest(t, p)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, free)
	for _, test := range []struct {
		bytes int
		limit float64
	}{{30, 1.2}, {200, 1.5}} {
		dir := held.host
		for len(dir) < test.bytes-50 {
			dir += "/" + strings.Repeat("d", 30)
		}
		path := dir + "/" + strings.Repeat("f", max(test.bytes-len(dir)-1, 5))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		files := held.files
		files.Rules = []policy.FSRule{{Mode: policy.Read, Pattern: held.host + "/**"}}
		if err := held.Update(files); err != nil {
			t.Fatal(err)
		}
		with, without := time.Hour, time.Hour
		for range 8 {
			with, without = min(with, held.opens(path)), min(without, free.opens(path))
		}
		ratio := float64(with) / float64(without)
		t.Logf("%d bytes: %v held, %v not: %.2f times", len(path), with/opensAtOnce, without/opensAtOnce, ratio)
		if ratio > 1.35*test.limit {
			t.Errorf("%d bytes: %.2f times, more than %.2f and what a measurement may be wrong", len(path), ratio, test.limit)
		}
	}
}

const opensAtOnce = 2000

func (g *fileGuest) opens(path string) time.Duration {
	g.t.Helper()
	start := time.Now()
	if r := g.do(request{Op: "opens", Addr: path, For: opensAtOnce}); r.Errno != 0 {
		g.t.Fatalf("%s: %v", r.Call, r.Errno)
	}
	return time.Since(start)
}

// forget moves a guest's process out of its cgroup, to where nobody is held.
func forget(t *testing.T, g *fileGuest) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(cgroup2Root(t), "cgroup.procs"), []byte(itoa(g.cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
}
