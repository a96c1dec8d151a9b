package leakcheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// found returns what a fresh comparison with before reports of one kind.
func found(t *testing.T, before snapshot, kind string) []string {
	t.Helper()
	now, err := take()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, line := range now.beyond(before) {
		if strings.HasPrefix(line, kind+": ") {
			out = append(out, line)
		}
	}
	return out
}

func snap(t *testing.T) snapshot {
	t.Helper()
	s, err := take()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSeesWhatIsLeft(t *testing.T) {
	Check(t) // and everything below is cleaned up again
	before := snap(t)

	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if got := found(t, before, "process"); len(got) != 1 || !strings.Contains(got[0], "(sleep)") {
		t.Errorf("a child process: reported %q", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	dir := filepath.Join(os.TempDir(), "psi-leakcheck-test")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	if got := found(t, before, "temporary file"); !slices.Contains(got, "temporary file: "+dir) {
		t.Errorf("a temporary directory: reported %q", got)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0)
	if got := found(t, before, "mount"); !slices.Contains(got, "mount: "+dir) { // and those of others
		t.Errorf("a mount: reported %q", got)
	}

	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if got := found(t, before, "descriptor"); len(got) != 1 {
		t.Errorf("an open file: reported %q", got)
	}
	f.Close()
}

func TestSeesCgroups(t *testing.T) {
	Check(t)
	before := snap(t)
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "unified")); err == nil {
		root = filepath.Join(root, "unified")
	}
	dir := filepath.Join(root, "psi-leakcheck")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	if got := found(t, before, "cgroup"); !slices.Contains(got, "cgroup: "+dir) {
		t.Errorf("a cgroup: reported %q", got)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	Check(t)
	// The shell ends at once and leaves a grandchild that dies without a parent
	// to wait for it.
	if err := exec.Command("sh", "-c", "sleep 0.05 & exit 0").Run(); err != nil {
		t.Fatal(err)
	}
}

func TestCutStat(t *testing.T) {
	name, rest, ok := cutStat("12 (a) b (c)) S 1 2")
	if !ok || name != "a) b (c)" || rest != " S 1 2" {
		t.Errorf("got %q, %q, %v", name, rest, ok)
	}
}
