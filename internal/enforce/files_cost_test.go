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
// in turn. Where the machine counts instructions (`go run ./tests/vm -count`) a
// nanosecond is one, and the limits are exact.
func TestFileCost(t *testing.T) {
	p := loadFiles(t)
	elsewhere := newCgroup(t) // as deep as the other: what the kernel counts for cgroups is no cost of ours
	held, free := startFileGuest(t, p), startFileGuest(t, p)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, free, elsewhere)
	base, err := os.MkdirTemp("/srv", "c") // short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	rounds, wrong := 6, 1.35 // what a measurement may be wrong
	if os.Getenv("PSI_TEST_COUNT") != "" {
		rounds, wrong = 8, 1
	}
	for _, test := range []struct {
		bytes int
		limit float64
	}{{30, 1.2}, {200, 1.5}} {
		path := pathOf(base, test.bytes)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		files := held.files
		files.Rules = []policy.FSRule{{Mode: policy.Read, Pattern: base + "/**"}}
		if err := held.Update(files); err != nil {
			t.Fatal(err)
		}
		with, without := time.Hour, time.Hour
		for range rounds {
			with, without = min(with, held.opens(path)), min(without, free.opens(path))
		}
		ratio := float64(with) / float64(without)
		t.Logf("%d bytes: %v held, %v not: %.2f times", len(path), with, without, ratio)
		if ratio > wrong*test.limit {
			t.Errorf("%d bytes: %.2f times, more than %.2f", len(path), ratio, wrong*test.limit)
		}
	}
}

// pathOf is a path of n bytes with components of at most 31.
func pathOf(base string, n int) string {
	path := base + "/d"
	for len(path) < n-40 {
		path += "/" + strings.Repeat("d", 30)
	}
	return path + "/" + strings.Repeat("f", n-len(path)-1)
}

func (g *fileGuest) opens(path string) time.Duration {
	g.t.Helper()
	r := g.do(request{Op: "opens", Addr: path, For: 1000})
	if r.Errno != 0 {
		g.t.Fatalf("%s: %v", r.Call, r.Errno)
	}
	return time.Duration(r.Counts["ns"])
}

// forget moves a guest's process out of its cgroup, to where nobody is held.
func forget(t *testing.T, g *fileGuest, elsewhere string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elsewhere, "cgroup.procs"), []byte(itoa(g.cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
}
