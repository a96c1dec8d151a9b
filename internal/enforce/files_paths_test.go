package enforce_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/enforce"
)

// TestPathsAreWhole compares the paths that the programs decide about, as their denials
// tell them, with those that were asked for: names of every length at which they are
// copied in another way, and more of them than are read where they lie.
func TestPathsAreWhole(t *testing.T) {
	g := startFileGuest(t, loadFiles(t))
	heard := make(chan enforce.Denial, 100)
	if err := g.OnDenied(func(d enforce.Denial) { heard <- d }); err != nil {
		t.Fatal(err)
	}
	name := func(n int) string {
		text := make([]byte, n)
		for i := range text {
			text[i] = byte('A' + (i+n)%26)
		}
		return string(text)
	}
	var paths []string
	for _, n := range []int{1, 2, 7, 8, 9, 10, 15, 16, 17, 18, 23, 24, 25, 31, 32, 33, 39, 40, 41, 254, 255} {
		paths = append(paths, g.host+"/"+name(n), g.host+"/in/"+name(n)+"/"+name(3)+"/"+name(n))
	}
	deep := g.host + "/deep"
	for n := 1; n <= 20; n++ {
		deep += "/" + name(n)
	}
	paths = append(paths, deep, filepath.Dir(deep)+"/\n\x1b (deleted)")
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		g.ask("open", path, syscall.EACCES)
		select {
		case got := <-heard:
			if got.Path != path || got.Suppressed != 0 {
				t.Errorf("told of %q, asked for %q", got.Path, path)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing was told of %q", path)
		}
	}
}
