package engine

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
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
		Kinds:         map[string]Kind{"/engine/1/hosts": File, "/srv/data": Directory, "/run/docker.sock": Other, "/etc/shadow": File},
		Landlock:      6,
		List:          func(string) ([]string, error) { return []string{"usr", "etc", "srv"}, nil },
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

// random draws a value, often one of the corners.
func random(r *rand.Rand, corners ...int64) *int64 {
	v := corners[r.IntN(len(corners))]
	switch r.IntN(4) {
	case 0:
		return nil
	case 1:
		v = r.Int64N(1 << uint(1+r.IntN(50)))
	}
	return &v
}

func randomResources(r *rand.Rand) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	truth := true
	if r.IntN(4) > 0 {
		out.Memory = &specs.LinuxMemory{Limit: random(r, -1, 0, 64<<20, 1<<40), Swap: random(r, -1, 0, 1<<30), Reservation: random(r, -1, 0, 1<<40), DisableOOMKiller: &truth}
	}
	if r.IntN(4) > 0 {
		period := uint64(1000 + r.IntN(1000000))
		burst := uint64(r.IntN(100000))
		out.CPU = &specs.LinuxCPU{Quota: random(r, -1, 0, 1000, 50000, 100000, 1<<40), Burst: &burst, RealtimeRuntime: random(r, 1, 950000)}
		if r.IntN(2) == 0 {
			out.CPU.Period = &period
		}
	}
	if r.IntN(4) > 0 {
		out.Pids = &specs.LinuxPids{Limit: random(r, -1, 0, 1, 64, 4096)}
	}
	values := []string{"max", "1", "1048576", "99999999999", "50000 100000", "max 100000", "10000000 1000"}
	for _, file := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.max.burst", "io.weight", "memory.oom.group"} {
		if r.IntN(5) == 0 {
			if out.Unified == nil {
				out.Unified = map[string]string{}
			}
			v := values[r.IntN(len(values))]
			if file != "cpu.max" {
				v = values[r.IntN(4)]
			}
			out.Unified[file] = v
		}
	}
	return out
}

func deref(v *int64) int64 {
	if v == nil {
		return 0
	}
	return *v
}

// limitOf is what the engine asked for: the smallest of its fields and files.
func limitOf(field *int64, unified map[string]string, file string) float64 {
	limit := math.Inf(1)
	if v := deref(field); v > 0 {
		limit = float64(v)
	}
	var n float64
	if _, err := fmt.Sscan(unified[file], &n); err == nil {
		limit = min(limit, n)
	}
	return limit
}

// Whatever an engine asks for, the result is within the policy and within what it
// asked for, and narrowing again changes nothing.
func TestLimitsAreNeverWidened(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		mem, cpu, pids := 8<<20+r.Int64N(1<<31), float64(1+r.IntN(400))/100, 1+r.Int64N(500)
		p := parse(t, fmt.Sprintf("mem: %d\ncpu: %g\npids: %d", mem, cpu, pids))
		asked := randomResources(r)
		n := narrow(t, engineSpec(func(s *specs.Spec) { s.Linux.Resources = asked }), p)
		got := n.Spec.Linux.Resources
		fail := func(what string) {
			t.Fatalf("%s: mem %d cpu %g pids %d; asked memory %+v cpu %+v pids %+v unified %v; got memory %+v %d cpu %d/%d pids %d unified %v", what, mem, cpu, pids,
				asked.Memory, asked.CPU, asked.Pids, asked.Unified, got.Memory, *got.Memory.Limit, *got.CPU.Quota, *got.CPU.Period, *got.Pids.Limit, got.Unified)
		}
		var field *int64
		if asked.Memory != nil {
			field = asked.Memory.Limit
		}
		if want := min(float64(mem), limitOf(field, asked.Unified, "memory.max")); float64(*got.Memory.Limit) != want || *got.Memory.Swap != *got.Memory.Limit {
			fail("memory")
		}
		if got.Memory.DisableOOMKiller != nil || got.Memory.Reservation != nil && *got.Memory.Reservation > *got.Memory.Limit {
			fail("memory")
		}
		field = nil
		if asked.Pids != nil {
			field = asked.Pids.Limit
		}
		if float64(*got.Pids.Limit) != min(float64(pids), limitOf(field, asked.Unified, "pids.max")) {
			fail("pids")
		}
		share := float64(*got.CPU.Quota) / float64(*got.CPU.Period)
		if share > askedCPU(asked)*1.0001 || share > cpu*1.01 || share < min(cpu, askedCPU(asked))*0.9 || got.CPU.Burst != nil || got.CPU.RealtimeRuntime != nil {
			fail("cpu")
		}
		for file := range got.Unified {
			if file != "io.weight" {
				fail("unified")
			}
		}
		if len(got.Devices) != 1 || got.Devices[0].Allow {
			fail("devices")
		}
		if again := narrow(t, n.Spec, p); !reflect.DeepEqual(again.Spec, n.Spec) {
			fail("again")
		}
	}
}

func askedCPU(r *specs.LinuxResources) float64 {
	share, period := math.Inf(1), float64(cpuPeriod)
	if r.CPU != nil && r.CPU.Period != nil {
		period = float64(*r.CPU.Period)
	}
	if r.CPU != nil && deref(r.CPU.Quota) > 0 {
		share = float64(*r.CPU.Quota) / period
	}
	var quota, per float64
	if n, _ := fmt.Sscan(r.Unified["cpu.max"], &quota, &per); n >= 1 {
		if n == 1 {
			per = cpuPeriod
		}
		share = min(share, quota/per)
	}
	return share
}

func TestUpdateIsNarrowed(t *testing.T) {
	p := parse(t, "mem: 64MiB\ncpu: 0.5\npids: 10")
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		ask  specs.LinuxResources
		want string
	}{
		"more memory":     {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(1 << 40), Swap: n(-1)}}, "mem 67108864 swap 67108864"},
		"less memory":     {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(32 << 20)}}, "mem 33554432 swap 33554432"},
		"unlimited":       {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(-1)}, Pids: &specs.LinuxPids{Limit: n(-1)}}, "mem 67108864 swap 67108864 pids 10"},
		"swap only":       {specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: n(1 << 40)}}, ""},
		"0 is unchanged":  {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(0)}, Pids: &specs.LinuxPids{Limit: n(0)}, CPU: &specs.LinuxCPU{Quota: n(0)}}, ""},
		"cpu":             {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: n(-1)}}, "cpu 50000"},
		"by unified file": {specs.LinuxResources{Unified: map[string]string{"memory.max": "max", "pids.max": "5"}}, "mem 67108864 swap 67108864 pids 5"},
	} {
		got, err := Update(&tc.ask, p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var words []string
		if m := got.Memory; m != nil && m.Limit != nil {
			words = append(words, fmt.Sprint("mem ", *m.Limit))
		}
		if m := got.Memory; m != nil && m.Swap != nil {
			words = append(words, fmt.Sprint("swap ", *m.Swap))
		}
		if c := got.CPU; c != nil && c.Quota != nil && *c.Quota != 0 {
			words = append(words, fmt.Sprint("cpu ", *c.Quota))
		}
		if got.Pids != nil {
			words = append(words, fmt.Sprint("pids ", *got.Pids.Limit))
		}
		if text := strings.Join(words, " "); text != tc.want || len(got.Unified) > 0 {
			t.Errorf("%s: %s, want %s", name, text, tc.want)
		}
	}
	for _, file := range []string{"cgroup.procs", "../memory.max", "cgroup.subtree_control"} {
		if _, err := Update(&specs.LinuxResources{Unified: map[string]string{file: "1"}}, p); err == nil {
			t.Errorf("%s: no error", file)
		}
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
		"host network":          {"{}", drop(specs.NetworkNamespace), "network namespace"},
		"host network by path":  {"{}", func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/proc/1/ns/net" }, "network namespace"},
		"host pids":             {"{}", drop(specs.PIDNamespace), "pid namespace"},
		"host ipc":              {"{}", drop(specs.IPCNamespace), "ipc namespace"},
		"host mounts":           {"{}", drop(specs.MountNamespace), "mount namespace"},
		"no namespaces":         {"{}", func(s *specs.Spec) { s.Linux = nil }, "namespace"},
		"name":                  {`tcp: ["db.example:5432"]`, func(*specs.Spec) {}, "db.example:5432"},
		"volume without a rule": {"{}", volume("/srv/data", "/data"), "fs: [{read: /srv/data}, {read: /data}]"},
		"rule for another":      {"fs: [{read: /srv/data2}]", volume("/srv/data", "/srv/data"), "fs: [{read: /srv/data}]"},
		"rule for the source":   {"fs: [{read: /srv/data}]", volume("/srv/data", "/data"), "fs: [{read: /data}]"},
		"rule for the place":    {"fs: [{write: /data}]", volume("/srv/data", "/data"), "fs: [{read: /srv/data}]"},
		"another's part":        {"fs: [{read: /data/a}, {read: /srv/data/b}]", volume("/srv/data", "/data"), "no fs rule allows"},
		"denied on the host":    {"fs: [{read: /data}, {read: /srv/data}, {deny: /srv}]", volume("/srv/data", "/data"), "denied by fs: deny /srv"},
		"the whole host":        {"fs: [{read: /data}]", volume("/", "/data"), "whole host"},
		"/proc of the host":     {"fs: [{read: /data}]", volume("/proc", "/data"), "/proc"},
		"state of psi":          {"fs: [{read: /data}]", volume("/run/psi", "/data"), "/run/psi"},
		"a relative source":     {"fs: [{read: /data}]", volume("data", "/data"), "absolute path"},
		"a socket":              {"fs: [{read: /data}]", volume("/run/docker.sock", "/data"), "socket"},
		"shadow as hosts":       {"{}", volume("/etc/shadow", "/etc/hosts"), "no fs rule allows"},
		"shadow as hostname":    {"{}", volume("/etc/shadow", "/etc/hostname"), "no fs rule allows"},
		"odd path":              {"{}", volume("/srv/data", "/etc/../data"), "at /data"},
		"proc elsewhere":        {"{}", mount(specs.Mount{Destination: "/p", Type: "proc", Source: "proc"}), "proc is mounted at /p"},
		"a disk":                {"{}", mount(specs.Mount{Destination: "/d", Type: "ext4", Source: "/dev/sda"}), "ext4"},
		"an overlay":            {"{}", mount(specs.Mount{Destination: "/d", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/"}}), "overlay"},
		"bind without the type": {"{}", mount(specs.Mount{Destination: "/d", Type: "tmpfs", Source: "/srv/data", Options: []string{"bind"}}), "no fs rule allows"},
		"a pattern":             {`fs: [{read: "/srv/data/*.csv"}]`, volume("/srv/data", "/srv/data"), "BPF-LSM"},
		"a denied pattern":      {`fs: [{deny: "/etc/*.key"}]`, func(*specs.Spec) {}, "BPF-LSM"},
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
	p := parse(t, `{allow_degraded: true, tcp: ["db.example:1"], fs: [{read: "/srv/data/*.csv"}, {read: /more/part}, {deny: "/**/x"}]}`)
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
	want := []string{"tcp: db.example:1", "tcp", "fs: read /srv/data/*.csv", "fs: deny /**/x", "fs: read /more/part"}
	if !slices.Equal(missing, want) {
		t.Errorf("missing: %q", missing)
	}
	// The mounts are narrowed as far as they can be.
	if m := mountAt(t, n.Spec, "/srv/data"); !slices.Contains(m.Options, "ro") {
		t.Errorf("%v", m.Options)
	}
}

func TestMountsAreNarrowed(t *testing.T) {
	p := parse(t, "{tmp: 1MiB, read_only: true, fs: [{read: /srv/**}, {read: /tree/**}, {deny: /etc/secret}, {deny: /srv/data/key}]}")
	s := engineSpec(volume("/srv/data", "/srv/data", "rw", "exec", "rrw"), volume("/srv/data", "/tree/below", "ro"),
		func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1g", "size=50%", "rw"}},
				specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"rw"}})
			s.Linux.ReadonlyPaths, s.Linux.MaskedPaths = nil, nil
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kvm"}}
		})
	n := narrow(t, s, p)
	for dest, want := range map[string]string{
		"/srv/data":      "rbind noexec rnoexec nosuid rnosuid nodev rnodev ro rro",
		"/tree/below":    "rbind noexec rnoexec nosuid rnosuid nodev rnodev ro rro",
		"/tmp":           "rw size=1048576",
		"/sys":           "ro",
		"/sys/fs/cgroup": "ro",
		"/etc/hosts":     "rbind rw",
	} {
		if got := strings.Join(mountAt(t, n.Spec, dest).Options, " "); got != want {
			t.Errorf("%s: %s, want %s", dest, got, want)
		}
	}
	if !n.Spec.Root.Readonly || len(n.Spec.Linux.Devices) > 0 {
		t.Error("root or devices")
	}
	for _, path := range append(bundle.MaskedPaths(), "/etc/secret", "/srv/data/key", "/tree/below/key") {
		if !slices.Contains(n.Spec.Linux.MaskedPaths, path) {
			t.Errorf("%s is not masked", path)
		}
	}
	for _, path := range bundle.ReadonlyPaths() {
		if !slices.Contains(n.Spec.Linux.ReadonlyPaths, path) {
			t.Errorf("%s is not read-only", path)
		}
	}
	if again := narrow(t, n.Spec, p); !reflect.DeepEqual(again.Spec, n.Spec) {
		t.Error("narrowing again changes something")
	}
	write := narrow(t, engineSpec(volume("/srv/data", "/srv/data", "rw")), parse(t, "fs: [{read: /srv/data}, {write: /srv/data}]"))
	if m := mountAt(t, write.Spec, "/srv/data"); slices.Contains(m.Options, "ro") {
		t.Errorf("a rule that writes: %v", m.Options)
	}
}

// What a volume shows must be open on the host and in the container; the weaker rule counts.
func TestBothPlacesOfAVolume(t *testing.T) {
	for document, want := range map[string]string{
		"{write: /srv/data}, {read: /data}":                       "ro",
		"{read: /srv/data}, {write: /data}":                       "ro",
		"{write: /srv/data}, {write: /data}":                      "",
		"{write: /srv}, {write: /data}, {read: /data/x}":          "",
		"{read: /srv/data/x}, {read: /data}":                      "ro read /data/x",
		"{read: /srv/data}, {read: /data/x}":                      "ro read /data/x",
		"{read: /srv/data/x}, {write: /data/x/y}":                 "ro read /data/x/y",
		"{write: /srv/data/x}, {write: /data/x/y}":                "write /data/x/y",
		"{read: /srv/data}, {read: /data}, {write: /data/x}":      "ro",
		"{write: /srv/data/x}, {read: /srv/data}, {write: /data}": "write /data/x read /data",
	} {
		n := narrow(t, engineSpec(volume("/srv/data", "/data", "rw")), parse(t, "fs: ["+document+"]"))
		var got []string
		if slices.Contains(mountAt(t, n.Spec, "/data").Options, "ro") {
			got = append(got, "ro")
		}
		for _, r := range n.Confine.Domain {
			if strings.HasPrefix(r.Path, "/data") {
				got = append(got, fmt.Sprint(r.Access, " ", r.Path))
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %q, want %q", document, text, want)
		}
	}
}

func TestEngineMounts(t *testing.T) {
	host := testHost()
	host.EngineMounts = []string{"/var/lib/kubelet/pods"}
	host.Kinds["/var/lib/kubelet/pods/1/token"], host.Kinds["/var/lib/kubelet/pods/1/sock"] = Directory, Other
	if _, err := Narrow(engineSpec(volume("/var/lib/kubelet/pods/1/token", "/run/token")), policy.Defaults(), host); err != nil {
		t.Error(err)
	}
	for _, source := range []string{"/var/lib/kubelet/pods/1/sock", "/var/lib/kubelet/pods2", "/var/lib/kubelet/pods/../../x", "/srv/data"} {
		if _, err := Narrow(engineSpec(volume(source, "/run/token")), policy.Defaults(), host); err == nil {
			t.Errorf("%s: no error", source)
		}
	}
}

func TestSizes(t *testing.T) {
	for options, want := range map[string]string{
		"": "size=100", "size=50": "size=50", "size=1k": "size=100", "size=10000000000000g": "size=100", "size=-1": "size=100",
		"size=0": "size=100", "size=99,size=10%": "size=99", "nr_blocks=1000": "size=100", "size=0x10": "size=100",
	} {
		m := specs.Mount{Options: slices.DeleteFunc(strings.Split(options, ","), func(s string) bool { return s == "" })}
		resize(&m, 100)
		if got := strings.Join(m.Options, ","); got != want {
			t.Errorf("%q: %s", options, got)
		}
	}
}

func TestLandlockDomain(t *testing.T) {
	s := engineSpec(volume("/srv/data", "/srv/data", "rw"))
	n := narrow(t, s, parse(t, "fs: [{read: /srv/data/public}, {write: /srv/data/out/**}]"))
	want := []confine.Rule{
		{Access: confine.List, Path: "/"}, {Access: confine.Read, Path: "/srv/data/public"}, {Access: confine.Write, Path: "/srv/data/out"},
		{Access: confine.Full, Path: "/dev"}, {Access: confine.Full, Path: "/etc"}, {Access: confine.Full, Path: "/proc"}, {Access: confine.Full, Path: "/sys"},
		{Access: confine.Full, Path: "/usr"}, {Access: confine.Full, Path: "/srv/etc"}, {Access: confine.Full, Path: "/srv/srv"}, {Access: confine.Full, Path: "/srv/usr"},
	}
	if !slices.Equal(n.Confine.Domain, want) {
		t.Errorf("%v", n.Confine.Domain)
	}
	whole := narrow(t, s, parse(t, "fs: [{read: /srv/data}, {write: /srv/data/out}]"))
	if d := whole.Confine.Domain; !slices.Contains(d, confine.Rule{Access: confine.Read, Path: "/srv/data"}) || !slices.Contains(d, confine.Rule{Access: confine.Write, Path: "/srv/data/out"}) {
		t.Errorf("%v", d)
	}
	readOnly := narrow(t, s, parse(t, "fs: [{read: /srv/data/public}]"))
	if m := mountAt(t, readOnly.Spec, "/srv/data"); !slices.Contains(m.Options, "rro") {
		t.Errorf("%v", m.Options)
	}
	for name, change := range map[string]func(*Host){
		"no Landlock": func(h *Host) { h.Landlock = 0 },
		"truncate":    func(h *Host) { h.Landlock = 2 },
		"a link":      func(h *Host) { h.List = func(string) ([]string, error) { return nil, errors.New("a link") } },
	} {
		host := testHost()
		change(&host)
		if _, err := Narrow(s, parse(t, "fs: [{read: /srv/data/public}, {write: /srv/data/out}]"), host); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Narrow(engineSpec(volume("/srv", "/srv"), volume("/srv/data", "/srv/data")), parse(t, "fs: [{write: /srv}, {read: /srv/data/x}]"), testHost()); err != nil {
		t.Errorf("the rule for /srv opens both: %v", err)
	}
	if _, err := Narrow(engineSpec(volume("/a", "/a"), volume("/a/b", "/a/b")), parse(t, "fs: [{read: /a/x}, {read: /a/b/y}]"), testHost()); err == nil {
		t.Error("a volume in a volume")
	}
}
