package bundle

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// TestPlanLive shows whole directories, whatever is in them: the kernel decides.
func TestPlanLive(t *testing.T) {
	base, err := os.MkdirTemp("/var/tmp", "psi-live-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	for _, name := range []string{"data/a.csv", "data/a.txt", "out/keep/key", "one"} {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(base+"/data/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	var p policy.Policy
	for _, r := range []policy.FSRule{
		{Mode: policy.Read, Pattern: base + "/data/*.csv"}, {Mode: policy.Write, Pattern: base + "/data/out/*.txt"}, {Mode: policy.Write, Pattern: base + "/out/**"},
		{Mode: policy.Deny, Pattern: base + "/out/**/key"}, {Mode: policy.Read, Pattern: base + "/one"}, {Mode: policy.Read, Pattern: base + "/out/keep"},
	} {
		if err := os.MkdirAll(base+"/data/out", 0o755); err != nil {
			t.Fatal(err)
		}
		if p, err = p.AllowFS(r.Pattern, r.Mode); err != nil {
			t.Fatal(err)
		}
	}
	view, err := PlanLive(p)
	if err != nil {
		t.Fatal(err)
	}
	want := []ViewMount{
		{Source: base + "/data", Dest: base + "/data", Dir: true},
		{Source: base + "/data/out", Dest: base + "/data/out", Dir: true, Write: true},
		{Source: base + "/one", Dest: base + "/one"},
		{Source: base + "/out", Dest: base + "/out", Dir: true, Write: true},
	}
	if len(view.Mounts) != len(want) || len(view.Dirs) != 0 {
		t.Fatalf("%+v", view)
	}
	if rules := view.Mounts[0].Rules; rules != "read "+base+"/data/*.csv\nwrite "+base+"/data/out/*.txt\n" {
		t.Errorf("rules in %s: %q", view.Mounts[0].Dest, rules)
	}
	for i := range want {
		view.Mounts[i].Rules = ""
		if view.Mounts[i] != want[i] {
			t.Errorf("%+v, want %+v", view.Mounts[i], want[i])
		}
	}
	if err := view.check(); err != nil {
		t.Error(err)
	}
}

// TestPlanLiveRefuses what no mechanism can show.
func TestPlanLiveRefuses(t *testing.T) {
	p, err := policy.Defaults().AllowFS("/var/tmp/psi-not-there/*.csv", policy.Read)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PlanLive(p); err == nil {
		t.Error("a directory that does not exist was planned")
	}
}
