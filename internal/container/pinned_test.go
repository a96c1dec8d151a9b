package container

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A source that has become a link since somebody looked at it is not mounted, if the
// caller asked for that.
func TestPinnedSources(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	for source, refused := range map[string]bool{real: false, link: true} {
		s := plainSpec("true")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: source, Options: []string{"rbind"}})
		o := f.options(s)
		o.Pinned = []string{"/data"}
		c, err := Create(context.Background(), o)
		if refused != (err != nil) || refused && !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", source, err)
		}
		if err == nil {
			if err := c.Delete(true); err != nil {
				t.Error(err)
			}
		}
	}
}
