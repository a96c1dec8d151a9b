package bundle

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

// anyRoot describes a root filesystem that need not exist: Compile looks at nothing.
func anyRoot() RootfsInfo {
	return RootfsInfo{Path: "/var/lib/psi/rootfs", Python: "3.11", Interpreter: "/usr/bin/python3.11",
		Agent: "/usr/lib/psi/agent.pyc", Digest: "sha256:" + strings.Repeat("0123456789abcdef", 4)}
}

func compile(t *testing.T, p policy.Policy, v View, e Entry) *specs.Spec {
	t.Helper()
	spec, err := Compile(p, anyRoot(), v, e)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// parse reads a policy document.
func parse(t *testing.T, document string) policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(document), "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// anyView is a view with every kind of mount.
func anyView() View {
	return View{
		Mounts: []ViewMount{
			{Source: "/srv/v7/in", Dest: "/srv/in", Dir: true},
			{Source: "/srv/job/a\nb.csv", Dest: "/srv/job/a\nb.csv", Write: true},
		},
		Dirs: []string{"/srv/job"},
	}
}

// The golden files are what a reviewer of a change to the confinement looks at:
// go test ./pkg/bundle -run Golden -update
func TestCompileGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden files name the architecture amd64 in the seccomp filter")
	}
	limited := parse(t, `{"mem": "64MiB", "cpu": 2.5, "pids": 8, "open_files": 32, "tmp": 0, "imports": ["math"],
		"tcp": ["127.0.0.1:9200"], "fs": ["/srv/in", {"write": "/srv/job/*.csv"}]}`)
	for name, spec := range map[string]*specs.Spec{
		"defaults.json": compile(t, policy.Defaults(), View{}, Entry{}),
		"limited.json":  compile(t, limited, anyView(), Entry{Script: "/home/u/job.py", Args: []string{"--fast", "x y"}}),
	} {
		got, err := json.MarshalIndent(spec, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what Compile makes (go test ./pkg/bundle -run Golden -update, and look at the diff): got\n%s", golden, got)
		}
	}
}

func TestCompileDeterministic(t *testing.T) {
	first := parse(t, `{"mem": "1GiB", "imports": ["math", "json"], "fs": ["/srv/in"]}`)
	second := parse(t, "fs:\n- /srv/in\nimports: [json, math]\nmem: 1073741824\n")
	entry := Entry{Script: "/home/u/job.py", Args: []string{"a"}}
	var all [][]byte
	for _, p := range []policy.Policy{first, second, first} {
		data, err := json.Marshal(compile(t, p, anyView(), entry))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
	}
	if !bytes.Equal(all[0], all[1]) || !bytes.Equal(all[0], all[2]) {
		t.Error("equal input gives different bytes")
	}
	// Where script and root lie on this host does not matter, but for the digest.
	moved := anyRoot()
	moved.Path = "/elsewhere"
	spec, err := Compile(first, moved, anyView(), Entry{Script: "/other.py", Args: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := json.Marshal(spec); !bytes.Equal(data, all[0]) {
		t.Error("the bytes depend on where script or root lie")
	}
}

// What a policy says and what the configuration says afterwards.
func TestCompileLimits(t *testing.T) {
	spec := compile(t, parse(t, `{"mem": "64MiB", "cpu": 2.5, "pids": 8, "open_files": 32, "tmp": "1MiB", "message": "2MiB", "output": "3MiB", "imports": []}`), View{}, Entry{})
	r := spec.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 64<<20 || *r.CPU.Quota != 250_000 || *r.CPU.Period != 100_000 || *r.Pids.Limit != 8 {
		t.Errorf("resources %+v %+v %+v", *r.Memory, *r.CPU, *r.Pids)
	}
	if !slices.Contains(spec.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: 32, Soft: 32}) {
		t.Errorf("rlimits %v", spec.Process.Rlimits)
	}
	for _, want := range []string{`PSI_CONFIG={"imports":[],"message":2097152,"output":3145728}`, "OPENBLAS_NUM_THREADS=3", "OMP_NUM_THREADS=3"} {
		if !slices.Contains(spec.Process.Env, want) {
			t.Errorf("no %s in %v", want, spec.Process.Env)
		}
	}
	tmp := spec.Mounts[slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/tmp" })]
	if !slices.Contains(tmp.Options, "size=1048576") {
		t.Errorf("/tmp: %v", tmp.Options)
	}
	back, err := policy.Parse([]byte(spec.Annotations[PolicyKey]), "annotation")
	if err != nil || back.Limits().Mem != 64<<20 {
		t.Errorf("the annotated policy does not come back: %v", err)
	}
	every := compile(t, policy.Defaults(), View{}, Entry{}).Process.Env
	if !slices.Contains(every, `PSI_CONFIG={"imports":null,"message":67108864,"output":16777216}`) || !slices.Contains(every, "OPENBLAS_NUM_THREADS=1") {
		t.Errorf("defaults: %v", every)
	}
}

// Agents have taken the default configuration before anybody tells them another: they have a copy.
func TestAgentKnowsDefaults(t *testing.T) {
	config, err := AgentConfig(policy.Defaults())
	if err != nil || string(config) != CommonConfig {
		t.Fatalf("CommonConfig is not %s (%v)", config, err)
	}
	source, err := os.ReadFile("../../rootfs/agent/agent.py")
	if err != nil {
		t.Fatal(err)
	}
	if want := "_COMMON = b'" + string(config) + "'\n"; !strings.Contains(string(source), want) {
		t.Errorf("rootfs/agent/agent.py has not %s", want)
	}
}

// Nothing that Compile returns is shared with the next result.
func TestCompileFresh(t *testing.T) {
	first := compile(t, policy.Defaults(), anyView(), Entry{})
	want, _ := json.Marshal(first)
	first.Linux.MaskedPaths[0], first.Linux.Seccomp.Syscalls[0].Names[0] = "x", "x"
	first.Mounts[len(first.Mounts)-1].UIDMappings[0].ContainerID = 7
	first.Linux.UIDMappings[0].HostID = 7
	first.Process.Env[0] = "x"
	if got, _ := json.Marshal(compile(t, policy.Defaults(), anyView(), Entry{})); !bytes.Equal(got, want) {
		t.Error("changing one configuration changed the next")
	}
}

func TestCompileViews(t *testing.T) {
	spec := compile(t, policy.Defaults(), anyView(), Entry{})
	placeholder := []specs.LinuxIDMapping{{ContainerID: 0, HostID: PlaceholderID, Size: 1}}
	want := []specs.Mount{
		{Destination: "/srv/in", Type: "bind", Source: "/srv/v7/in", Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private", "idmap"},
			UIDMappings: placeholder, GIDMappings: placeholder},
		{Destination: "/srv/job/a\nb.csv", Type: "bind", Source: "/srv/job/a\nb.csv", Options: []string{"bind", "rw", "nosuid", "nodev", "noexec", "private", "idmap"},
			UIDMappings: placeholder, GIDMappings: placeholder},
	}
	if got := spec.Mounts[len(spec.Mounts)-2:]; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestCompileErrors(t *testing.T) {
	mount := func(source, dest string) View { return View{Mounts: []ViewMount{{Source: source, Dest: dest}}} }
	tests := map[string]struct {
		view View
		edit func(*RootfsInfo)
		e    Entry
		want string
	}{
		"relative source":       {view: mount("srv", "/srv/x"), want: `"srv" is not an absolute clean path`},
		"source with dots":      {view: mount("/srv/../etc", "/srv/x"), want: "not an absolute clean path"},
		"destination with dots": {view: mount("/srv/x", "/srv/../etc"), want: "not an absolute clean path"},
		"destination /proc":     {view: mount("/srv/x", "/proc/1"), want: "/proc"},
		"destination the root":  {view: mount("/srv/x", "/"), want: "whole host"},
		"destination the agent": {view: mount("/srv/x", "/usr/lib/psi/agent.pyc"), want: "agent"},
		"not UTF-8":             {view: mount("/srv/\xff", "/srv/x"), want: "not UTF-8"},
		"NUL":                   {view: mount("/srv/a\x00b", "/srv/x"), want: "NUL"},
		"twice":                 {view: View{Mounts: []ViewMount{{Source: "/srv/a", Dest: "/srv/x"}, {Source: "/srv/b", Dest: "/srv/x"}}}, want: "not sorted"},
		"unsorted":              {view: View{Mounts: []ViewMount{{Source: "/srv/b", Dest: "/srv/b"}, {Source: "/srv/a", Dest: "/srv/a"}}}, want: "not sorted"},
		"too many":              {view: View{Dirs: make([]string, maxMounts+1)}, want: "more than 4096"},
		"a directory in /dev":   {view: View{Dirs: []string{"/dev/x"}}, want: "/dev"},
		"relative interpreter":  {edit: func(r *RootfsInfo) { r.Interpreter = "python3" }, want: `"python3" is not an absolute path`},
		"no digest":             {edit: func(r *RootfsInfo) { r.Digest = "" }, want: "sha256"},
		"NUL in an argument":    {e: Entry{Script: "x.py", Args: []string{"ok", "a\x00"}}, want: "argument 2 of the script"},
		"argument not UTF-8":    {e: Entry{Script: "x.py", Args: []string{"\xff"}}, want: "not UTF-8"},
		"long arguments":        {e: Entry{Script: "x.py", Args: []string{strings.Repeat("x", maxArgs)}}, want: "send them as data"},
		"arguments, no script":  {e: Entry{Args: []string{"a"}}, want: "name a script"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := anyRoot()
			if tt.edit != nil {
				tt.edit(&r)
			}
			if _, err := Compile(policy.Defaults(), r, tt.view, tt.e); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
