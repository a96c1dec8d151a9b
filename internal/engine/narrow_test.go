package engine

import (
	"errors"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/modules"
	"github.com/psi-runtime/psi/pkg/policy"
)

func parse(t *testing.T, document string) policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(document), "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// container is what an engine writes for an ordinary container.
func engineSpec(change ...func(*specs.Spec)) *specs.Spec {
	s := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "/var/lib/engine/merged"},
		Process: &specs.Process{
			Args: []string{"app"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  []string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"},
				Effective: []string{"CAP_CHOWN", "CAP_NET_RAW"}, Permitted: []string{"CAP_CHOWN", "CAP_SYS_RESOURCE"},
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"rw"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/engine/1/hosts", Options: []string{"rbind", "rw"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/cni"},
			},
			MaskedPaths: []string{"/proc/own"},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func testHost() Host {
	return Host{
		OwnNamespaces: map[string]bool{"/proc/1/ns/net": true},
		Kinds:         map[string]Kind{"/engine/1/hosts": File, "/srv/data": Directory, "/run/docker.sock": Other, "/etc/shadow": File, "/srv/data/a.csv": File, "/srv/data/a.txt": File},
		Landlock:      6,
		Files:         func() error { return errors.New("no BPF-LSM") },
		List:          func(string) ([]string, error) { return []string{"usr", "etc", "srv"}, nil },
		Modules:       testModules,
		Doors:         func(dir string) ([]string, error) { return []string{"/run/" + path.Base(dir) + ".sock"}, nil },
	}
}

func volume(source, dest string, options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)})
	}
}

func narrow(t *testing.T, s *specs.Spec, p policy.Policy) Narrowed {
	t.Helper()
	n, err := Narrow(s, p, testHost())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mountAt(t *testing.T, s *specs.Spec, dest string) specs.Mount {
	t.Helper()
	for _, m := range s.Mounts {
		if m.Destination == dest {
			return m
		}
	}
	t.Fatalf("no mount at %s", dest)
	return specs.Mount{}
}

func TestNarrowLeavesItsInputAlone(t *testing.T) {
	s, same := engineSpec(volume("/srv/data", "/srv/data", "rw")), engineSpec(volume("/srv/data", "/srv/data", "rw"))
	n := narrow(t, s, parse(t, "fs: [{read: /srv/data}, {deny: /etc/secret}]"))
	if !reflect.DeepEqual(s, same) {
		t.Error("the engine's specification was changed")
	}
	if reflect.DeepEqual(n.Spec, s) {
		t.Error("nothing was narrowed")
	}
}

func TestProcessIsNarrowed(t *testing.T) {
	s := engineSpec(func(s *specs.Spec) {
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}, {Type: "RLIMIT_CORE", Hard: math.MaxUint64, Soft: 0}, {Type: "RLIMIT_NPROC", Hard: 7, Soft: 7}}
		never := -1000
		s.Process.OOMScoreAdj = &never
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO, Priority: 50}
	})
	n := narrow(t, s, parse(t, "open_files: 100"))
	p := n.Spec.Process
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 100, Soft: 100}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Hard: 7, Soft: 7}}
	if !slices.Equal(p.Rlimits, want) || p.Scheduler != nil || p.OOMScoreAdj != nil || !p.NoNewPrivileges {
		t.Errorf("%+v %+v", p.Rlimits, p)
	}
	if c := p.Capabilities; !slices.Equal(c.Bounding, []string{"CAP_CHOWN", "CAP_SYS_CHROOT"}) || !slices.Equal(c.Effective, []string{"CAP_CHOWN"}) || len(c.Permitted) != 1 {
		t.Errorf("%+v", c)
	}
	withFS := narrow(t, engineSpec(volume("/srv/data", "/srv/data")), parse(t, "fs: [{read: /srv/data}]"))
	if slices.Contains(withFS.Spec.Process.Capabilities.Bounding, "CAP_SYS_CHROOT") {
		t.Error("chroot with fs rules")
	}
	more, err := Process(&specs.Process{Args: []string{"x"}, Capabilities: &specs.LinuxCapabilities{Effective: []string{"cap_bpf", "CAP_KILL"}}}, parse(t, "{}"))
	if err != nil || !slices.Equal(more.Capabilities.Effective, []string{"CAP_KILL"}) || more.Rlimits[1].Hard != 256 || !more.NoNewPrivileges {
		t.Errorf("%+v, %v", more, err)
	}
}

func TestRefused(t *testing.T) {
	drop := func(kind specs.LinuxNamespaceType) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		}
	}
	mount := func(m specs.Mount) func(*specs.Spec) { return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) } }
	for name, tc := range map[string]struct {
		document string
		change   func(*specs.Spec)
		want     string
	}{
		"host network":                 {"{}", drop(specs.NetworkNamespace), "network namespace"},
		"host network by path":         {"{}", func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/proc/1/ns/net" }, "network namespace"},
		"host pids":                    {"{}", drop(specs.PIDNamespace), "pid namespace"},
		"host ipc":                     {"{}", drop(specs.IPCNamespace), "ipc namespace"},
		"host mounts":                  {"{}", drop(specs.MountNamespace), "mount namespace"},
		"no namespaces":                {"{}", func(s *specs.Spec) { s.Linux = nil }, "namespace"},
		"name":                         {`tcp: ["db.example:5432"]`, func(*specs.Spec) {}, "db.example:5432"},
		"wildcard":                     {`tcp: ["*.example.com:443"]`, func(*specs.Spec) {}, "*.example.com:443"},
		"udp name":                     {`udp: ["db.example:53"]`, func(*specs.Spec) {}, "udp: db.example:53"},
		"a port":                       {"expose: [8000]", func(*specs.Spec) {}, "expose: 8000: under an engine's network"},
		"connections":                  {"net_conns: 5", func(*specs.Spec) {}, "net_conns: 5"},
		"rate":                         {"net_rate: 1MiB", func(*specs.Spec) {}, "net_rate"},
		"bytes":                        {"net_bytes: 1MiB", func(*specs.Spec) {}, "net_bytes"},
		"volume without a rule":        {"{}", volume("/srv/data", "/data"), "fs: [{read: /srv/data}, {read: /data}]"},
		"rule for another":             {"fs: [{read: /srv/data2}]", volume("/srv/data", "/srv/data"), "fs: [{read: /srv/data}]"},
		"rule for the source":          {"fs: [{read: /srv/data}]", volume("/srv/data", "/data"), "fs: [{read: /data}]"},
		"rule for the place":           {"fs: [{write: /data}]", volume("/srv/data", "/data"), "fs: [{read: /srv/data}]"},
		"another's part":               {"fs: [{read: /data/a}, {read: /srv/data/b}]", volume("/srv/data", "/data"), "no fs rule allows"},
		"denied on the host":           {"fs: [{read: /data}, {read: /srv/data}, {deny: /srv}]", volume("/srv/data", "/data"), "denied by fs: deny /srv"},
		"the whole host":               {"fs: [{read: /data}]", volume("/", "/data"), "whole host"},
		"/proc of the host":            {"fs: [{read: /data}]", volume("/proc", "/data"), "/proc"},
		"state of psi":                 {"fs: [{read: /data}]", volume("/run/psi", "/data"), "/run/psi"},
		"a relative source":            {"fs: [{read: /data}]", volume("data", "/data"), "absolute path"},
		"a socket":                     {"fs: [{read: /data}]", volume("/run/docker.sock", "/data"), "socket"},
		"shadow as hosts":              {"{}", volume("/etc/shadow", "/etc/hosts"), "no fs rule allows"},
		"shadow as hostname":           {"{}", volume("/etc/shadow", "/etc/hostname"), "no fs rule allows"},
		"odd path":                     {"{}", volume("/srv/data", "/etc/../data"), "at /data"},
		"proc elsewhere":               {"{}", mount(specs.Mount{Destination: "/p", Type: "proc", Source: "proc"}), "proc is mounted at /p"},
		"a disk":                       {"{}", mount(specs.Mount{Destination: "/d", Type: "ext4", Source: "/dev/sda"}), "ext4"},
		"an overlay":                   {"{}", mount(specs.Mount{Destination: "/d", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/"}}), "overlay"},
		"bind without the type":        {"{}", mount(specs.Mount{Destination: "/d", Type: "tmpfs", Source: "/srv/data", Options: []string{"bind"}}), "no fs rule allows"},
		"a pattern":                    {`fs: [{read: "/srv/data/*.csv"}]`, volume("/srv/data", "/srv/data"), "BPF-LSM"},
		"a denied pattern":             {`fs: [{deny: "/etc/*.key"}]`, func(*specs.Spec) {}, "BPF-LSM"},
		"a file that no pattern means": {`fs: [{read: "/srv/data/*.csv"}]`, volume("/srv/data/a.txt", "/srv/data/a.txt"), "no fs rule allows"},
		"a file at another place":      {`fs: [{read: "/srv/data/*.csv"}]`, volume("/srv/data/a.csv", "/data/a.csv"), "no fs rule allows"},
		"rlimit twice": {"{}", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE"}, {Type: "RLIMIT_NOFILE", Hard: 1 << 20}}
		}, "twice"},
		"group files": {"{}", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}
		}, "cgroup.procs"},
		"unified garbage": {"{}", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"memory.max": "-1"}}
		}, "memory.max"},
		"psi-init without proc": {"seccomp: python", func(s *specs.Spec) { s.Mounts = s.Mounts[1:] }, "/proc"},
		"psi-init is denied": {"seccomp: python", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"mmap", "close", "execve"}, Action: specs.ActAllow}}}
		}, "prctl"},
	} {
		_, err := Narrow(engineSpec(tc.change), parse(t, tc.document), testHost())
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Narrow(&specs.Spec{}, policy.Defaults(), testHost()); err == nil {
		t.Error("an empty specification")
	}
	noBPF := testHost()
	noBPF.Network = errors.New("no eBPF")
	if _, err := Narrow(engineSpec(), policy.Defaults(), noBPF); err == nil || !strings.Contains(err.Error(), "no eBPF") {
		t.Errorf("without eBPF: %v", err)
	}
}

func TestDegraded(t *testing.T) {
	host := testHost()
	host.Network, host.Landlock = errors.New("no eBPF"), 0
	host.Modules = func() (*Modules, error) { return nil, modules.ErrNoGraph }
	host.Doors = func(dir string) ([]string, error) {
		if dir == "/more" {
			return nil, errors.New("too many files")
		}
		return nil, nil
	}
	p := parse(t, `{allow_degraded: true, imports: [math], tcp: ["db.example:1"], fs: [{read: "/srv/data/*.csv"}, {read: /more/part}, {deny: "/**/x"}]}`)
	host.Kinds["/more"] = Directory
	n, err := Narrow(engineSpec(volume("/srv/data", "/srv/data"), volume("/more", "/more")), p, host)
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, e := range n.Enforced {
		if e.Missing {
			missing = append(missing, e.Rule)
		}
	}
	want := []string{"tcp: db.example:1", "tcp", "fs: deny /**/x", "fs: read /srv/data/*.csv", "sockets and FIFOs in /more", "fs: read /more/part", "imports: [math]"}
	if !slices.Equal(missing, want) {
		t.Errorf("missing: %q", missing)
	}
	// The mounts are narrowed as far as they can be.
	if m := mountAt(t, n.Spec, "/srv/data"); !slices.Contains(m.Options, "ro") {
		t.Errorf("%v", m.Options)
	}
}

// An import list is held by the files of the image, if it says which they are; otherwise
// it is an error.
func TestImports(t *testing.T) {
	n := narrow(t, engineSpec(), parse(t, "imports: [math, json]"))
	hidden := []string{"/lib/py/csv", "/lib/py/sub.py"}
	masked := n.Spec.Linux.MaskedPaths
	if !slices.Equal(n.Files.Modules, hidden) || len(union(masked, hidden)) != len(masked) {
		t.Errorf("masked: %q, modules: %q", masked, n.Files.Modules)
	}
	if !slices.Contains(n.Enforced, Enforcement{Rule: "imports: [json math]", By: "masked files of the image: 2"}) {
		t.Errorf("%v", n.Enforced)
	}
	host := testHost()
	for want, err := range map[string]error{"psi-runtime rootfs": modules.ErrNoGraph, "broken": errors.New("broken")} {
		host.Modules = func() (*Modules, error) { return nil, err }
		if _, err := Narrow(engineSpec(), parse(t, "imports: []"), host); err == nil || !strings.Contains(err.Error(), "imports: []") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Narrow(engineSpec(), parse(t, "mem: 64MiB"), host); err != nil {
		t.Errorf("without a list: %v", err)
	}
}

// Sockets and FIFOs in a volume lead out of a container, and no rule is about them.
func TestDoors(t *testing.T) {
	bundle := engineSpec(volume("/srv/data", "/data"), volume("/srv/data/a.csv", "/a.csv"))
	p := parse(t, "fs: [{write: /srv/data}, {read: /data}, {read: /a.csv}]")
	n := narrow(t, bundle, p)
	if !slices.Contains(n.Spec.Linux.MaskedPaths, "/data/run/data.sock") || slices.ContainsFunc(n.Enforced, func(e Enforcement) bool { return e.Missing }) {
		t.Errorf("masked: %q, %v", n.Spec.Linux.MaskedPaths, n.Enforced)
	}
	host := testHost()
	host.Doors = func(string) ([]string, error) { return nil, errors.New("too many files") }
	if _, err := Narrow(bundle, p, host); err == nil || !strings.Contains(err.Error(), "sockets and FIFOs in /data") || !strings.Contains(err.Error(), "too many files") {
		t.Errorf("%v", err)
	}
	host.Files = func() error { return nil }
	if n, err := Narrow(bundle, p, host); err != nil || !slices.Contains(n.Enforced, Enforcement{Rule: "sockets and FIFOs in /data", By: lsm}) {
		t.Errorf("with LSM programs: %v, %v", n.Enforced, err)
	}
}
