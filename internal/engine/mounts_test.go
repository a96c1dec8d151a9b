package engine

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

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

// podman's passwd is no volume; another file of that name is one.
func TestPasswdOfPodman(t *testing.T) {
	host := testHost()
	for source, refused := range map[string]bool{"/c/userdata/passwd": false, "/etc/passwd": true, "/srv/passwd": true} {
		host.Kinds[source] = File
		if _, err := Narrow(engineSpec(volume(source, "/etc/passwd")), policy.Defaults(), host); refused != (err != nil) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// psi's own options would make a bind of a read-only mount writable: the kernel takes those that are given for all.
func TestReadOnlyMountsStaySo(t *testing.T) {
	host := testHost()
	host.ReadOnly = map[string]bool{"/srv/data": true, "/srv/data/a.csv": true}
	without, with := host.Files, func() error { return nil }
	for document, files := range map[string]func() error{`{fs: [{write: /srv/data}]}`: without, `{fs: [{write: "/srv/data/**/*.csv"}]}`: with} {
		host.Files = files
		p, err := policy.Parse([]byte(document), "")
		if err != nil {
			t.Fatal(err)
		}
		n, err := Narrow(engineSpec(volume("/srv/data", "/srv/data"), volume("/srv/data/a.csv", "/srv/data/a.csv", "rw")), p, host)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range n.Spec.Mounts {
			if strings.HasPrefix(m.Destination, "/srv/data") && (!slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rw")) {
				t.Errorf("%s: %s has %v", document, m.Destination, m.Options)
			}
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
