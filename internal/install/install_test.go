package install

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

const program = "/bin/sh" // any program that is there

// files of users, as they are found.
var files = map[Engine][]string{
	Containerd: {
		"version = 2\n",
		"version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n      SystemdCgroup = true\n",
		"version = 3\nroot = '/srv'\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = 'runc'\n",
	},
	Docker: {
		"{}\n", "{\n    \"mtu\": 1400,\n    \"debug\": true\n}", `{"runtimes":{"runsc":{"path":"/usr/bin/runsc","runtimeArgs":["--x"]}},"log-level":"warn"}`,
	},
	Podman: {}, CRIO: {},
}

func TestInstallTwiceAndUninstall(t *testing.T) {
	for _, engine := range Engines() {
		for _, before := range append([]string{"(absent)"}, files[engine]...) {
			path := filepath.Join(t.TempDir(), "conf.d", "config")
			if before != "(absent)" {
				write(t, path, before)
			}
			o := Options{Engine: engine, Path: path, Runtime: program}

			change := plan(t, Install, o)
			if change.Empty() || !strings.Contains(change.Diff(), program) {
				t.Errorf("%s, %q: the change is %q", engine, before, change.Diff())
			}
			if now := read(t, path); now != before {
				t.Errorf("%s: planning changed the file to %q", engine, now)
			}
			apply(t, change)
			if got := read(t, path); !strings.Contains(got, program) {
				t.Errorf("%s, %q: the file is now %q", engine, before, got)
			}
			if second := plan(t, Install, o); !second.Empty() || second.Diff() != "" {
				t.Errorf("%s, %q: a second install would do %q", engine, before, second.Diff())
			}
			if before != "(absent)" && read(t, path+backupSuffix) != before {
				t.Errorf("%s: the backup is %q, want %q", engine, read(t, path+backupSuffix), before)
			}

			o.Runtime = "" // uninstall does not know which it was
			apply(t, plan(t, Uninstall, o))
			if got := read(t, path); got != before {
				t.Errorf("%s: uninstall left %q, want %q", engine, got, before)
			}
			if got := read(t, path+backupSuffix); got != "(absent)" {
				t.Errorf("%s: uninstall left the backup %q", engine, got)
			}
			if again := plan(t, Uninstall, o); !again.Empty() {
				t.Errorf("%s: a second uninstall would do %q", engine, again.Diff())
			}
		}
	}
}

// What somebody else changed after the install stays.
func TestUninstallKeepsWhatOthersChanged(t *testing.T) {
	for engine, edit := range map[Engine][2]string{
		Containerd: {"version = 2\n", "version = 2\nroot = \"/srv\"\n"},
		Docker:     {"\"mtu\": 1400", "\"mtu\": 9000"},
	} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, files[engine][1])
		o := Options{Engine: engine, Path: path, Runtime: program}
		apply(t, plan(t, Install, o))
		write(t, path, strings.Replace(read(t, path), edit[0], edit[1], 1))
		apply(t, plan(t, Uninstall, o))
		if got := read(t, path); strings.Contains(got, program) || !strings.Contains(got, edit[1]) {
			t.Errorf("%s: uninstall left %q", engine, got)
		}
	}
}

func TestInstallMovesToAnotherProgram(t *testing.T) {
	for _, engine := range Engines() {
		path := filepath.Join(t.TempDir(), "config")
		apply(t, plan(t, Install, Options{Engine: engine, Path: path, Runtime: program}))
		apply(t, plan(t, Install, Options{Engine: engine, Path: path, Runtime: "/bin/cat"}))
		if got := read(t, path); strings.Contains(got, program) || strings.Count(got, "/bin/cat") != 1 {
			t.Errorf("%s: the file is now %q", engine, got)
		}
	}
}

func TestContainerdKeepsTheCgroupDriver(t *testing.T) {
	for i, want := range []int{0, 2, 0} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, files[Containerd][i])
		apply(t, plan(t, Install, Options{Engine: Containerd, Path: path, Runtime: program}))
		if got := strings.Count(read(t, path), "SystemdCgroup = true"); got != want {
			t.Errorf("file %d: SystemdCgroup is there %d times, want %d", i, got, want)
		}
	}
}

// A pod's annotations reach its containers by the one key, a container's own by the other; both are
// in the class's own table.
func TestContainerdPassesAnnotations(t *testing.T) {
	for i, plugin := range []string{"io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, files[Containerd][i])
		apply(t, plan(t, Install, Options{Engine: Containerd, Path: path, Runtime: program}))
		type class struct {
			Pod       []string `toml:"pod_annotations"`
			Container []string `toml:"container_annotations"`
		}
		var config struct {
			Plugins map[string]struct {
				Containerd struct{ Runtimes map[string]class }
			}
		}
		if err := toml.Unmarshal([]byte(read(t, path)), &config); err != nil {
			t.Fatal(err)
		}
		got := config.Plugins[plugin].Containerd.Runtimes[Class]
		if want := []string{"io.psi.*"}; !slices.Equal(got.Pod, want) || !slices.Equal(got.Container, want) {
			t.Errorf("file %d: the class %s has %+v, want %q in both", i, Class, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		engine Engine
		before string
		names  string
	}{
		{Containerd, "", "migrate"},
		{Containerd, "version = 1\n", "migrate"},
		{Containerd, "version = 2", "cut off"},
		{Containerd, "version = 2\ndisabled_plugins = [\"cri\"]\n", "disabled_plugins"},
		{Containerd, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.psi]\n", "already"},
		{Containerd, "version = 2\n" + blockBegin + "\n", "by hand"},
		{Docker, "{", "JSON"},
		{Docker, "null", "null"},
		{Docker, `{"runtimes": 7}`, "runtimes"},
		{Podman, "[engine]\n", "not written by psi-runtime"},
		{CRIO, "[crio]\n", "not written by psi-runtime"},
		{"rkt", "", "containerd"},
	} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, test.before)
		_, err := Install(Options{Engine: test.engine, Path: path, Runtime: program})
		if err == nil || !strings.Contains(err.Error(), test.names) {
			t.Errorf("%s with %q: error %v, want one that names %q", test.engine, test.before, err, test.names)
		}
	}
	for _, runtime := range []string{"sh", "/no/such/program", "/etc/passwd", "/etc"} {
		if _, err := Install(Options{Engine: Podman, Path: filepath.Join(t.TempDir(), "x"), Runtime: runtime}); err == nil {
			t.Errorf("the runtime %s was taken", runtime)
		}
	}
	path := filepath.Join(t.TempDir(), "daemon.json")
	write(t, path, `{"default-runtime":"psi","runtimes":{"psi":{"path":"/bin/sh"}}}`)
	if _, err := Uninstall(Options{Engine: Docker, Path: path}); err == nil {
		t.Error("docker's default runtime was taken away")
	}
}

func TestDiff(t *testing.T) {
	c := Change{Path: "/etc/x", Before: []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n"), After: []byte("1\n2\n3\n4\nfive\n5.5\n6\n7\n8\n9\n")}
	want := "--- /etc/x\n+++ /etc/x\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n+5.5\n 6\n 7\n 8\n"
	if got := c.Diff(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	c = Change{Path: "/etc/x", After: []byte("new\n")}
	if got, want := c.Diff(), "--- /dev/null\n+++ /etc/x\n@@ -0,0 +1,1 @@\n+new\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func plan(t *testing.T, f func(Options) (Change, error), o Options) Change {
	t.Helper()
	c, err := f(o)
	if err != nil {
		t.Fatalf("%s: %v", o.Engine, err)
	}
	return c
}

func apply(t *testing.T, c Change) {
	t.Helper()
	if err := c.Apply(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "(absent)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
