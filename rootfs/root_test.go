package rootfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "embed"
)

//go:embed testdata/import_all.py
var importAll string

// systemPython is the interpreter that most tests pack.
const systemPython = "/usr/bin/python3"

// build builds a root and fails the test if that fails.
func build(t *testing.T, o Options) Report {
	t.Helper()
	if o.Python == "" {
		o.Python = systemPython
	}
	if o.Output == "" {
		o.Output = filepath.Join(t.TempDir(), "root")
	}
	report, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// inGuest runs the packed interpreter in the root, with nothing but the root.
func inGuest(t *testing.T, root string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("chroot needs CAP_SYS_CHROOT: run this test as root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", append([]string{"-I", "-S"}, args...)...)
	cmd.Err, cmd.Path = nil, "/usr/bin/python3" // the root's, not the host's
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir, cmd.Env = "/", []string{"LANG=C.UTF-8", "HOME=/tmp", "PATH=/usr/bin"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3 in %s: %v\n%s", root, err, stderr.String())
	}
	return string(out)
}

// TestRoot builds one root of the system's Python and looks at it from all sides.
func TestRoot(t *testing.T) {
	var steps []string
	report := build(t, Options{Progress: func(step string) { steps = append(steps, step) }})
	t.Logf("%d bytes, %d files, Python %s", report.Size, report.Files, report.Python)
	if len(steps) < 5 {
		t.Errorf("progress: %q", steps)
	}
	t.Run("size", func(t *testing.T) { checkSize(t, report) })
	t.Run("metadata", func(t *testing.T) { checkMetadata(t, report.Path) })
	t.Run("manifest", func(t *testing.T) { checkManifest(t, report) })
	t.Run("digest", func(t *testing.T) { checkDigest(t, report) })
	t.Run("bytecode", func(t *testing.T) { checkBytecode(t, report) })
	t.Run("run", func(t *testing.T) { checkRun(t, report.Path) })
	t.Run("imports", func(t *testing.T) { checkImports(t, report.Path) })
	t.Run("graph", func(t *testing.T) { checkGraph(t, report.Path) })
	t.Run("closures", func(t *testing.T) { checkClosures(t, report.Path) })
	t.Run("hidden", func(t *testing.T) { checkHidden(t, report.Path) })
	t.Run("tracebacks", func(t *testing.T) { checkTraceback(t, report) })
	t.Run("left out", func(t *testing.T) { checkLeftOut(t, report) })
}

func checkSize(t *testing.T, report Report) {
	var size int64
	files := 0
	walk(t, report.Path, func(_ string, info fs.FileInfo) {
		if info.Mode().IsRegular() {
			size += info.Size()
			files++
		}
	})
	if size != report.Size || files != report.Files {
		t.Errorf("report says %d bytes in %d files, the root has %d in %d", report.Size, report.Files, size, files)
	}
	if const50 := int64(50_000_000); size > const50 {
		t.Errorf("root has %d bytes, at most %d are allowed", size, const50)
	}
}

// walk visits everything below root with its path relative to root.
func walk(t *testing.T, root string, visit func(rel string, info fs.FileInfo)) {
	t.Helper()
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, at)
		visit(rel, info)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkMetadata: world-readable, owned by 0:0, one time, and neither devices
// nor setuid files.
func checkMetadata(t *testing.T, root string) {
	walk(t, root, func(rel string, info fs.FileInfo) {
		mode := info.Mode()
		owner := info.Sys().(*syscall.Stat_t)
		if os.Geteuid() == 0 && (owner.Uid != 0 || owner.Gid != 0) {
			t.Errorf("%s belongs to %d:%d", rel, owner.Uid, owner.Gid)
		}
		if !info.ModTime().Equal(fixedTime()) {
			t.Errorf("%s has time %s", rel, info.ModTime())
		}
		switch {
		case mode.IsRegular():
			if perm := mode.Perm(); perm != 0o644 && perm != 0o755 {
				t.Errorf("%s has mode %s", rel, mode)
			}
		case mode.IsDir():
			if mode.Perm() != 0o755 && rel != "tmp" {
				t.Errorf("%s has mode %s", rel, mode)
			}
		case mode&fs.ModeSymlink != 0:
			if _, err := os.Stat(inRootPath(t, root, rel)); err != nil {
				t.Errorf("link %s leads nowhere inside the root: %v", rel, err)
			}
		default:
			t.Errorf("%s is a %s", rel, mode.Type())
		}
		if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s has mode %s", rel, mode)
		}
	})
	if info, err := os.Stat(filepath.Join(root, "tmp")); err != nil || info.Mode().Perm() != 0o777 || info.Mode()&fs.ModeSticky == 0 {
		t.Errorf("/tmp: %v %v", info, err)
	}
	for _, dir := range []string{"proc", "dev", "sys", "srv", "run", "mnt", "data", "home", "opt", "var", "tmp"} {
		if list, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(list) != 0 {
			t.Errorf("/%s: %d entries, %v", dir, len(list), err)
		}
	}
}

// inRootPath follows absolute links of the root on the host.
func inRootPath(t *testing.T, root, rel string) string {
	t.Helper()
	target, err := os.Readlink(filepath.Join(root, rel))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.IsAbs(target) {
		return filepath.Join(root, target)
	}
	return filepath.Join(root, filepath.Dir(rel), target)
}

func checkManifest(t *testing.T, report Report) {
	data, err := os.ReadFile(filepath.Join(report.Path, manifestPath))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"python": report.Python, "interpreter": "/usr/bin/python" + report.Python,
		"agent": "/usr/lib/psi/agent.pyc", "site_packages": false, "digest": report.Digest,
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("rootfs.json: %s is %v, want %v", key, got[key], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("rootfs.json: %v", got)
	}
	for _, name := range []string{"agent.py", "agent.pyc", "entry.py"} {
		if info, err := os.Stat(filepath.Join(report.Path, agentDir, name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// checkBytecode: every source has bytecode that is never checked against it.
func checkBytecode(t *testing.T, report Report) {
	tag := ".cpython-" + strings.ReplaceAll(report.Python, ".", "") + ".pyc"
	sources := 0
	walk(t, report.Path, func(rel string, info fs.FileInfo) {
		if !strings.HasSuffix(rel, ".py") || strings.HasSuffix(rel, "/entry.py") {
			return
		}
		sources++
		dir, file := filepath.Split(rel)
		pyc, err := os.ReadFile(filepath.Join(report.Path, dir, "__pycache__", strings.TrimSuffix(file, ".py")+tag))
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return
		}
		const flags, hashed = 4, 1 // PEP 552: bit 0 hash-based, bit 1 checked
		if len(pyc) < 16 || pyc[flags] != hashed || pyc[flags+1] != 0 {
			t.Errorf("%s: bytecode flags are not hash-based and unchecked", rel)
		}
	})
	if sources < 300 {
		t.Errorf("only %d sources in the root", sources)
	}
}

// checkRun imports the modules that lean on shared libraries and system files.
func checkRun(t *testing.T, root string) {
	out := inGuest(t, root, "-c", `
import ssl, sqlite3, ctypes, lzma, bz2, zlib, hashlib, json, asyncio, decimal, uuid, readline
import curses, locale, os, pwd, socket, subprocess, sys, threading, time, zoneinfo
assert sys.prefix == sys.exec_prefix == "/usr", (sys.prefix, sys.exec_prefix)
assert sys.executable.startswith("/usr/bin/python3")
assert all(p.startswith("/usr/lib/python3") for p in sys.path), sys.path
assert sys.getfilesystemencoding() == "utf-8" and locale.setlocale(locale.LC_ALL, "") == "C.UTF-8"
assert pwd.getpwuid(0).pw_name == "guest" and os.path.expanduser("~") == "/tmp"
assert pwd.getpwuid(65534).pw_name == "nobody"
assert socket.gethostbyname("localhost") == "127.0.0.1"
assert time.tzname == ("UTC", "UTC"), time.tzname
assert zoneinfo.ZoneInfo("Europe/Berlin")
assert ssl.create_default_context().get_ca_certs()
assert hashlib.sha256(b"x").digest() and hashlib.new("blake2b")
assert ctypes.CDLL("libgcc_s.so.1")
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
t = threading.Thread(target=lambda: None); t.start(); t.join()
asyncio.run(asyncio.sleep(0))
print("fine")`)
	if strings.TrimSpace(out) != "fine" {
		t.Errorf("guest said %q", out)
	}
}

// checkImports imports every module there is. What cannot be imported is
// listed in docs/rootfs.md, with the reason.
func checkImports(t *testing.T, root string) {
	var result struct {
		Imported int               `json:"imported"`
		Failed   map[string]string `json:"failed"`
	}
	if err := json.Unmarshal([]byte(inGuest(t, root, "-c", importAll)), &result); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d modules imported, failed: %v", result.Imported, result.Failed)
	if result.Imported < 450 {
		t.Errorf("only %d modules imported", result.Imported)
	}
	for module, reason := range result.Failed {
		if !slices.Contains([]string{"dbm.gnu", "dbm.ndbm", "_pyrepl._minimal_curses"}, module) {
			t.Errorf("import %s: %s", module, reason)
		}
	}
}

func checkTraceback(t *testing.T, report Report) {
	out := inGuest(t, report.Path, "-c", `
import json, traceback
try: json.loads("{")
except ValueError: print(traceback.format_exc())`)
	for _, want := range []string{"/usr/lib/python" + report.Python + "/json/decoder.py", "obj, end = self.scan_once("} {
		if !strings.Contains(out, want) {
			t.Errorf("traceback lacks %q:\n%s", want, out)
		}
	}
}

func checkLeftOut(t *testing.T, report Report) {
	if !slices.IsSorted(report.LeftOut) || len(report.LeftOut) == 0 {
		t.Errorf("left out is empty or not sorted: %q", report.LeftOut)
	}
	for _, line := range report.LeftOut {
		name, reason, ok := strings.Cut(line, ": ")
		if !ok || reason == "" {
			t.Errorf("left out %q gives no reason", line)
		}
		if _, err := os.Lstat(filepath.Join(report.Path, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is said to be left out, and is there", name)
		}
	}
	for _, name := range []string{"test", "idlelib", "tkinter", "ensurepip", "pip", "lib2to3", "pydoc_data", "distutils", "sqlite3/test"} {
		if _, err := os.Lstat(filepath.Join(report.Path, "usr/lib/python"+report.Python, name)); err == nil {
			t.Errorf("%s is in the root", name)
		}
	}
}
