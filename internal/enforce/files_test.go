package enforce

import (
	"errors"
	"os"
	"testing"
)

// loadFiles loads the LSM programs, or skips where the kernel refuses them.
func loadFiles(t *testing.T) *FilePrograms {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	p, err := LoadFiles()
	if errors.Is(err, ErrNotSupported) {
		if os.Getenv("PSI_TEST_VM") != "" {
			t.Fatalf("the second kernel has BPF-LSM: %v", err)
		}
		t.Skipf("needs BPF-LSM: %v", err)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		removed, err := CollectFiles()
		if err != nil {
			t.Error(err)
		}
		t.Logf("removed %q", removed)
	})
	return p
}

func TestFilesLoad(t *testing.T) { loadFiles(t) }
