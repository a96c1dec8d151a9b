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

// What other test runs have is told by where it was made, or by who lives in it; in doubt it is ours.
func TestForeign(t *testing.T) {
	p := places{ours: []string{"/tmp", "/home/a/psi"}}
	for _, dir := range []string{"/var/tmp/b", "/home/b/psi", "/tmp/c", "/home/a", "/var", "/", "", "relative"} {
		p.add(dir)
	}
	if want := []string{"/var/tmp/b", "/home/b/psi"}; !slices.Equal(p.others, want) {
		t.Errorf("places of others: %q, want %q", p.others, want)
	}
	for _, test := range []struct {
		j    journal
		want bool
	}{
		{journal{Root: "/var/tmp/b/root", Bundle: "/var/tmp/b/bundle", Rootfs: "/var/tmp/b/bundle/rootfs"}, true},
		{journal{Root: "/run/psi/owners/x", Bundle: "/home/b/psi/build/rootfs"}, true},
		{journal{Root: "/var/tmp/b/root", Bundle: "/tmp/bundle"}, false},
		{journal{Root: "/var/tmp/b/root", Rootfs: "/home/a/psi/build/rootfs"}, false},
		{journal{Root: "/var/tmp/bb", Bundle: "/home/b"}, false},
		{journal{Root: "/run/psi"}, false},
		{journal{}, false},
	} {
		if got := test.j.isForeign(nil, p); got != test.want {
			t.Errorf("%+v is foreign: %v, want %v", test.j, got, test.want)
		}
	}
}

// A container of somebody else's that has the name of one of ours, below another root, hides nothing of it.
func TestForeignNames(t *testing.T) {
	f := foreign{map[string]bool{}, map[uint64]bool{}, map[string]bool{}, map[string]bool{}, map[uint64]bool{}, places{}}
	f.add(runDir+"/same@0123", journal{Cgroups: map[string]string{"": "/sys/fs/cgroup/psi/same-0123"}, Shared: []string{"/sys/fs/cgroup/psi"}})
	f.add(runDir+"/default@", journal{})
	for path, want := range map[string]bool{
		"/same@0123": true, "/same@0123.root": true, "/same@0123.root/usr": true, "/same@4567": false, "/same@4567.root": false, "/same": false,
		"/default@": true, "/default/state.json": true, "/default@0123": false,
	} {
		if got := f.owns(runDir + path); got != want {
			t.Errorf("%s is foreign: %v, want %v", path, got, want)
		}
	}
	for path, want := range map[string]bool{
		"/psi/same-0123": true, "/psi/same-0123/below": true, "/psi": true, "/psi/same-4567": false, "/psi/same": false, "/psi/@0123": false,
	} {
		if got := f.inGroups("/sys/fs/cgroup" + path); got != want {
			t.Errorf("%s is foreign: %v, want %v", path, got, want)
		}
	}
}
