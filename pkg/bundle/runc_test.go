package bundle_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/policy"
)

// guestScript reads a script of testdata/guest.
func guestScript(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "guest", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRuncHello(t *testing.T) {
	g := guest{script: "import sys; print('hello', *sys.argv[1:])", args: []string{"a b", "ü\n"}}
	if got := g.run(t).ok(t); got != "hello a b ü" {
		t.Errorf("got %q", got)
	}
}

func TestRuncExitCode(t *testing.T) {
	if got := (guest{script: "import sys; sys.exit(3)"}).run(t); got.code != 3 {
		t.Errorf("exit code %d, want 3: %s", got.code, got.stderr)
	}
}

func TestRuncThreads(t *testing.T) {
	if got := (guest{script: guestScript(t, "threads.py")}).run(t).ok(t); got != "threads fine" {
		t.Errorf("got %q", got)
	}
}

func TestRuncStandardLibrary(t *testing.T) {
	if got := (guest{script: guestScript(t, "stdlib.py")}).run(t).ok(t); got != "stdlib fine" {
		t.Errorf("got %q", got)
	}
}

// TestRuncImports: of a policy that limits imports, the bundle holds the modules that are
// needed, under any runtime.
func TestRuncImports(t *testing.T) {
	p, err := policy.Parse([]byte("imports: [json]"), "test")
	if err != nil {
		t.Fatal(err)
	}
	g := guest{policy: p, script: `
import json
plain = __builtins__.__import__.__self__._import
sys = plain("sys")
ours = [each for each in sys.meta_path if type(each) is not type]
sys.meta_path[:] = [each for each in sys.meta_path if type(each) is type]
for name in "json.tool ctypes _ctypes subprocess socket ssl multiprocessing sqlite3".split():
    try:
        plain(name)
        print(name)
    except ModuleNotFoundError: pass
sys.meta_path[:0] = ours
try: import ctypes
except ImportError as error: print(error)
os = plain("os")
print(os.path.exists("/usr/lib/python3.11/ctypes"), os.path.exists("/usr/lib/python3.11/json"))`}
	want := "json.tool\nimport of 'ctypes' is not allowed: the sandbox's import list allows json; " +
		"add 'ctypes' to the policy's imports (allow_import) or to allowed_imports\nFalse True"
	if got := g.run(t).ok(t); got != want {
		t.Errorf("got %q", got)
	}
}

func TestRuncNumerics(t *testing.T) {
	for _, cpu := range []float64{1, 1.5} {
		limits := policy.Defaults().Limits()
		limits.CPU = cpu
		limits.Mem = 512 << 20
		p, err := policy.Defaults().WithLimits(limits)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Threads, BLAS int }
		out := guest{policy: p, numerics: true, script: guestScript(t, "numerics.py")}.run(t).ok(t)
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// A BLAS with threads starts as many as it is told; Debian's reference BLAS has none.
		want := int(cpu + 0.5)
		if got.BLAS != want || got.Threads < 1 || got.Threads > want {
			t.Errorf("cpu %g: %d threads run of %d", cpu, got.Threads, got.BLAS)
		}
	}
}

// confined is what testdata/guest/confined.py reports.
type confined struct {
	UID, GID, PID      int
	Groups             []int
	Capabilities       map[string]string
	NoNewPrivs         string `json:"no_new_privs"`
	Seccomp            string
	Env                map[string]string
	CWD, Hostname      string
	Root, Sys, Dev     []string
	Interfaces, Masked int
	UIDMap             []string `json:"uid_map"`
	GIDMap             []string `json:"gid_map"`
	Mounts             []string
	WriteRoot          string `json:"write root"`
	WriteDev           string `json:"write dev"`
	WriteProc          string `json:"write proc"`
	WriteTmp           string `json:"write tmp"`
	WriteShm           string `json:"write shm"`
	FillTmp            string `json:"fill tmp"`
	Cgroup             string
}

func TestRuncConfinement(t *testing.T) {
	var got confined
	if err := json.Unmarshal([]byte(guest{script: guestScript(t, "confined.py")}.run(t).ok(t)), &got); err != nil {
		t.Fatal(err)
	}
	if got.UID != 0 || got.GID != 0 || got.PID != 1 || got.Hostname != "psi" || got.CWD != "/" {
		t.Errorf("identity: %+v", got)
	}
	for name, value := range got.Capabilities {
		if strings.Trim(value, "0") != "" {
			t.Errorf("%s is %s", name, value)
		}
	}
	if got.NoNewPrivs != "1" || got.Seccomp != "2" {
		t.Errorf("no_new_privs %s, seccomp %s", got.NoNewPrivs, got.Seccomp)
	}
	idMap := []string{"0", "1879048192", "1"}
	if !slices.Equal(got.UIDMap, idMap) || !slices.Equal(got.GIDMap, idMap) {
		t.Errorf("maps %v %v", got.UIDMap, got.GIDMap)
	}
	if got.Interfaces != 1 || len(got.Sys) != 0 || got.Masked != 0 {
		t.Errorf("%d network interfaces, /sys %v, %d masked bytes", got.Interfaces, got.Sys, got.Masked)
	}
	for name := range got.Env {
		if !slices.Contains([]string{"HOME", "LANG", "PATH", "PSI_CONFIG", "TMPDIR"}, name) && !strings.HasSuffix(name, "_NUM_THREADS") {
			t.Errorf("environment has %s", name)
		}
	}
	for what, outcome := range map[string][2]string{
		"root": {got.WriteRoot, "Read-only file system"}, "/dev": {got.WriteDev, "Read-only file system"},
		"/proc/sys": {got.WriteProc, "Read-only file system"},
		"/tmp":      {got.WriteTmp, "done"}, "/dev/shm": {got.WriteShm, "done"}, "/tmp beyond its size": {got.FillTmp, "No space left on device"},
	} {
		if outcome[0] != outcome[1] {
			t.Errorf("writing %s: %s, want %s", what, outcome[0], outcome[1])
		}
	}
	for _, mount := range got.Mounts {
		where, options, _ := strings.Cut(mount, " ")
		if (where == "/tmp" || where == "/dev/shm") && !strings.Contains(options, "noexec") {
			t.Errorf("%s can be executed from: %s", where, options)
		}
		if where == "/" && !strings.HasPrefix(options, "ro") {
			t.Errorf("the root is %s", options)
		}
	}
}

// With no byte of /tmp allowed, there is a /tmp and nothing can be written to it.
func TestRuncNoTmp(t *testing.T) {
	limits := policy.Defaults().Limits()
	limits.Tmp = 0
	p, err := policy.Defaults().WithLimits(limits)
	if err != nil {
		t.Fatal(err)
	}
	got := guest{policy: p, script: `
import os
try:
    open("/tmp/x", "w")
except OSError as e:
    print(os.strerror(e.errno), os.listdir("/tmp"))`}.run(t).ok(t)
	if got != "Read-only file system []" {
		t.Errorf("got %q", got)
	}
}

func TestRuncMemoryLimit(t *testing.T) {
	limits := policy.Defaults().Limits()
	limits.Mem = 64 << 20
	p, err := policy.Defaults().WithLimits(limits)
	if err != nil {
		t.Fatal(err)
	}
	got := guest{policy: p, script: "x = bytearray(200 << 20); print(len(x))"}.run(t)
	if got.code != 137 || got.stdout != "" {
		t.Errorf("a guest beyond its memory ended with %d: %q %q", got.code, got.stdout, got.stderr)
	}
}

// systemCall is one call that the guest makes, and the errno that it wants.
type systemCall struct {
	name string
	nr   int
	args []uint64
	want string
}

func (c systemCall) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{c.name, c.nr, c.args, c.want})
}

func makeCalls(t *testing.T, calls []systemCall) {
	t.Helper()
	data, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	got := guest{script: guestScript(t, "seccomp.py"), args: []string{string(data)}}.run(t)
	if got.code != 0 {
		t.Errorf("%s%s", got.stdout, got.stderr)
	}
	if want := fmt.Sprintf("%d calls made", len(calls)); !strings.Contains(got.stdout, want) {
		t.Errorf("not all calls were made: %s%s", got.stdout, got.stderr)
	}
}
