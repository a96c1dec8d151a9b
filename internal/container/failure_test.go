package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestFailedCreateLeavesNothing: whatever is wrong with a bundle, the error says
// so and the fixture finds nothing left (its clean-up checks).
func TestFailedCreateLeavesNothing(t *testing.T) {
	limit := int64(-5)
	cases := map[string]struct {
		spoil func(*CreateOptions)
		want  string
	}{
		"no arguments":     {func(o *CreateOptions) { o.Spec.Process.Args = nil }, "process.args must not be empty"},
		"relative cwd":     {func(o *CreateOptions) { o.Spec.Process.Cwd = "tmp" }, `process.cwd "tmp" must be an absolute path`},
		"no process":       {func(o *CreateOptions) { o.Spec.Process = nil }, "process must be set"},
		"no root":          {func(o *CreateOptions) { o.Spec.Root = nil }, "root.path must be set"},
		"missing root":     {func(o *CreateOptions) { o.Spec.Root.Path = "/no/such" }, "/no/such"},
		"missing program":  {func(o *CreateOptions) { o.Spec.Process.Args = []string{"/no/program"} }, "no such file or directory"},
		"missing in PATH":  {func(o *CreateOptions) { o.Spec.Process.Args = []string{"nothing"} }, "executable file not found in $PATH"},
		"cwd that is none": {func(o *CreateOptions) { o.Spec.Process.Cwd = "/proc/version" }, "/proc/version"},
		"missing bind source": {func(o *CreateOptions) {
			o.Spec.Mounts = append(o.Spec.Mounts, specs.Mount{Destination: "/tmp/x", Source: "/no/source", Options: []string{"bind"}})
		}, "/no/source"},
		"unknown file system": {func(o *CreateOptions) {
			o.Spec.Mounts = append(o.Spec.Mounts, specs.Mount{Destination: "/tmp/x", Source: "x", Type: "nofs"})
		}, "no such device"},
		"unknown rlimit":  {func(o *CreateOptions) { o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, `"RLIMIT_X"`},
		"bad id":          {func(o *CreateOptions) { o.ID = "../x" }, "invalid container ID"},
		"bad ids":         {func(o *CreateOptions) { o.Spec.Annotations[annotationIDs] = "mine" }, `the only value is "auto"`},
		"ids of odd size": {func(o *CreateOptions) { setMappings(o.Spec, 17) }, "maps 1 or 65536 ids, not 17"},
		"two namespaces": {func(o *CreateOptions) {
			o.Spec.Linux.Namespaces = append(o.Spec.Linux.Namespaces, o.Spec.Linux.Namespaces[0])
		}, "duplicated ns"},
		"bad limit": {func(o *CreateOptions) {
			o.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		}, "memory"},
		"failing hook":        {func(o *CreateOptions) { o.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}} }, "exit status 1"},
		"unwritable pid file": {func(o *CreateOptions) { o.PIDFile = "/no/such/dir/pid" }, "writing pid file"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			o := f.options(autoSpec("true"))
			tc.spoil(&o)
			c, err := Create(context.Background(), o)
			if err == nil {
				_ = c.Delete(true)
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
}

func setMappings(s *specs.Spec, size uint32) {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: placeholder, Size: size}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
}

func TestGuestErrorIsTold(t *testing.T) {
	f := newFixture(t)
	o := f.options(autoSpec("true"))
	o.Spec.Process.Args = []string{"/no/program"}
	_, err := Create(context.Background(), o)
	var guest *GuestError
	if !errors.As(err, &guest) || guest.ID != o.ID {
		t.Errorf("a missing program is %T: %v", err, err)
	}
}

func TestSameName(t *testing.T) {
	f := newFixture(t)
	o := f.options(autoSpec("true"))
	c := f.create(o)
	if _, err := Create(context.Background(), o); !errors.Is(err, ErrExist) {
		t.Errorf("creating it twice: %v", err)
	}
	// The first one is as it was.
	if err := c.Start(); err != nil {
		t.Error(err)
	}
	if status, err := c.Wait(); err != nil || status != (ExitStatus{}) {
		t.Errorf("status %+v, %v", status, err)
	}
	// Below another root the name is free.
	o.Root = filepath.Join(f.run, "containers", "..", "other")
	t.Cleanup(func() { _ = os.Remove(o.Root) })
	d := f.create(o)
	if err := os.Remove(o.Root); err == nil {
		t.Error("the other root is empty")
	}
	for controller, dir := range d.groups() {
		if dir == c.groups()[controller] {
			t.Errorf("both containers are in cgroup %s", dir)
		}
	}
}

func TestCancelledCreate(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Create(ctx, f.options(autoSpec("true"))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPoststopRunsAfterFailure(t *testing.T) {
	f := newFixture(t)
	mark := filepath.Join(t.TempDir(), "mark")
	o := f.options(autoSpec("true"))
	o.Spec.Hooks = &specs.Hooks{
		CreateRuntime: []specs.Hook{{Path: "/bin/false"}},
		Poststop:      []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", ": >" + mark}}},
	}
	if _, err := Create(context.Background(), o); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the poststop hook did not run: %v", err)
	}
}
