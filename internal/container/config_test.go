package container

import (
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestDevicesAreNotShared: the owner of one container's devices is not the next's.
func TestDevicesAreNotShared(t *testing.T) {
	config := func(s *specs.Spec) *configs.Config {
		c, err := newConfig(s, &CreateOptions{Root: "/r", ID: "x", Bundle: "/b", Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := config(withIDs(autoSpec("true"), placeholder, idRange{FirstID + 1, 1}, 0, 0))
	second := config(withIDs(autoSpec("true"), placeholder, idRange{FirstID + 2, 1}, 0, 0))
	plain := config(plainSpec("true"))
	for i, want := range []uint32{FirstID + 1, FirstID + 2, 0} {
		c := []*configs.Config{first, second, plain}[i]
		if len(c.Devices) == 0 {
			t.Fatal("no devices")
		}
		for _, d := range c.Devices {
			if d.Uid != want || d.Gid != want {
				t.Errorf("config %d: %s belongs to %d:%d, want %d", i, d.Path, d.Uid, d.Gid, want)
			}
		}
	}
}

func TestGroupPath(t *testing.T) {
	for name, tc := range map[string]struct {
		o       CreateOptions
		group   string
		want    string
		systemd bool
	}{
		"the bundle's":  {CreateOptions{ID: "x", CgroupParent: "/p"}, "/a/b", "/a/b", false},
		"below parent":  {CreateOptions{ID: "x", Root: DefaultRunDir, CgroupParent: "/p"}, "", "/p/x", false},
		"other root":    {CreateOptions{ID: "x", Root: "/r", CgroupParent: "/p"}, "", "/p/x-" + digest("/r"), false},
		"systemd asked": {CreateOptions{ID: "x", Root: DefaultRunDir, SystemdCgroup: true}, "", "system.slice:psi:x", true},
		"the user's":    {CreateOptions{ID: "x", Root: DefaultRunDir, SystemdCgroup: true, RootlessCgroups: true}, "", "user.slice:psi:x", true},
		"systemd slice": {CreateOptions{ID: "x", SystemdCgroup: true}, "a.slice:b:c", "a.slice:b:c", true},
	} {
		s := plainSpec("true")
		s.Linux.CgroupsPath = tc.group
		if got, systemd := groupPath(s, &tc.o); got != tc.want || systemd != tc.systemd {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, systemd, tc.want, tc.systemd)
		}
	}
}
