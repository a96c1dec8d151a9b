package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/engine"
)

// Another import list while a container runs: what it hides is gone for code that does all that
// it can to keep it, and what the agent says of it is clear.

// importer is a container that runs Python that it is sent, and tells what that prints.
type importer struct {
	*subject
	in  io.Writer
	out *bufio.Reader
}

// runner is its program.
const runner = `
import sys
for line in sys.stdin:
    try:
        exec(bytes.fromhex(line).decode(), globals())
    except BaseException as error:
        print(type(error).__name__, error)
    print("\0", flush=True)
`

// wide and narrow are the lists before and after; what both have is there to attack with.
const (
	wide   = "imports: [sys, posix, mmap, _socket, math, csv, ctypes, subprocess, xml]"
	narrow = "imports: [sys, posix, mmap, _socket, math]"
)

// importers are a bundle of psi's own and a container that an engine made.
func importers(t *testing.T, each func(t *testing.T, i *importer)) {
	t.Run("own", func(t *testing.T) {
		l, bundle := newLine(t), filepath.Join(t.TempDir(), "bundle")
		l.ok("bundle", "--policy", write(t, "before.yml", wide), "--entry", write(t, "entry.py", runner), "--rootfs", pythonRoot(t), "-o", bundle)
		each(t, importerOf(l, "own", bundle))
	})
	t.Run("engine", func(t *testing.T) { each(t, engineImporter(t)) })
}

// engineImporter may write its image.
func engineImporter(t *testing.T) *importer {
	l, image := newLine(t), filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("cp", "-a", pythonRoot(t), image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return importerOf(l, "engine", l.bundle("", func(spec *specs.Spec) {
		spec.Root = &specs.Root{Path: image}
		spec.Process.Args = []string{"/usr/bin/python3", "-I", "-S", "-c", runner}
		spec.Annotations = map[string]string{engine.PolicyKey: "{" + wide + "}"}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
	}))
}

// importerOf begins the container of a bundle.
func importerOf(l *line, id, bundle string) *importer {
	t := l.t
	t.Helper()
	s := &subject{line: l, id: id, probe: []string{"/usr/bin/python3", "-I", "-S", "-c", "pass"}}
	s.clean()
	cmd := l.command("run", "-b", bundle, id)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); l.run("delete", "--force", id); _ = cmd.Wait() })
	i := &importer{s, in, bufio.NewReader(out)}
	i.does("") // it runs
	return i
}

// does runs code in the container, to its end.
func (i *importer) does(code string) string {
	i.t.Helper()
	if _, err := fmt.Fprintln(i.in, hex.EncodeToString([]byte(code))); err != nil {
		i.t.Fatal(err)
	}
	text, err := i.out.ReadString(0)
	if err != nil {
		i.t.Fatalf("%v after %q", err, text)
	}
	if _, err := i.out.ReadString('\n'); err != nil {
		i.t.Fatal(err)
	}
	return strings.TrimSuffix(text, "\x00")
}

// opens tells of each file of modules whether it can be read, in the container and by who joins it.
const opens = `
import posix, sys
library = "/usr/lib/python%d.%d" % sys.version_info[:2]
def readable(path):
    try:
        fd = posix.open(path, posix.O_RDONLY)
    except OSError:
        return False
    try:
        return len(posix.read(fd, 10)) > 0
    finally:
        posix.close(fd)
for name in "csv.py", "subprocess.py", "__pycache__/csv.cpython-311.pyc", "ctypes/__init__.py", "xml/sax/handler.py", "lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so", "types.py":
    if readable(library + "/" + name):
        print(name.split("/")[-1].split(".")[0], end=" ")
print(end="libffi" if readable("/usr/lib/x86_64-linux-gnu/libffi.so.8") else "")
`

func TestApplyImports(t *testing.T) {
	importers(t, func(t *testing.T, i *importer) {
		const all, few = "csv subprocess csv __init__ handler _ctypes types libffi", "types "
		for _, step := range []struct{ policy, opens, held string }{
			{wide, all, "files of the root, which was made with the bundle|masked files of the image: [0-9]+"},
			{narrow, few, "files of the root, of which [0-9]+ are hidden; the guest's agent|masked files of the image: [0-9]+"},
			{"imports: [sys, posix, csv]", "csv csv types ", "files of the root, of which|masked files"},
			{"{mem: 64MiB, imports: [sys, posix, ctypes]}", "subprocess __init__ _ctypes types libffi", "files of the root, of which|masked files"},
			{"imports: [sys, posix]", few, "files of the root, of which|masked files"},
			{wide, all, ""},
		} {
			i.applies(step.policy)
			joined := i.ok("exec", i.id, "/usr/bin/python3", "-I", "-S", "-c", opens)
			if got := i.does(opens); got != step.opens || joined != got {
				t.Errorf("%s: it opens %q, who joins it %q, not %q", step.policy, got, joined, step.opens)
			}
			if state := i.ok("state", i.id); !regexp.MustCompile(`"rule": "imports: \[.*\]",\n *"by": "(` + step.held + ")").MatchString(state) {
				t.Errorf("%s: %s", step.policy, state)
			}
		}
		imports := "for name in 'math', 'csv', 'xml.sax':\n try: __import__(name); print(name, end=' ')\n except ImportError as e: print(e)"
		i.applies("imports: [sys, math]")
		got := i.does(imports)
		if i.id == "own" {
			if want := "math import of 'csv' is not allowed: the sandbox's import list allows math, sys; add 'csv'"; !strings.HasPrefix(got, want) {
				t.Errorf("%q, not %q", got, want)
			}
			i.refused("imports: [math, sqlite3]", "imports: .*it cannot change in a running container: for sqlite3 its root has no file of sqlite3, because the policy that the bundle was compiled with hides it: compile one with a policy that allows it")
			i.refused("{}", "imports cannot change in a running container, from .* to nothing: its root has the files of the list that the bundle was compiled with")
			i.applies(wide)
			if got := i.does(imports); got != "math csv xml.sax " {
				t.Errorf("with all of it again: %q", got)
			}
			return
		}
		if !strings.HasPrefix(got, "math No module named 'csv'") {
			t.Errorf("%q", got)
		}
		// More than it was made with, up to what the image has; and then no more limits.
		i.applies("imports: [sys, posix, csv, socket]")
		if got := i.does("import csv, socket; print(socket.__name__)"); got != "socket\n" {
			t.Errorf("%q", got)
		}
		i.applies("{}")
		if got := i.does(opens); got != all {
			t.Errorf("without a list it opens %q", got)
		}
		i.refused(narrow, "imports cannot change in a running container, from nothing to .*: what may import everything has done so")
	})
}

// keeping is what code does to have modules after they are taken away, and how it lets go of that.
var keeping = map[string][2]string{
	"a directory":       {"d = posix.open(library + '/ctypes', posix.O_RDONLY)", "posix.close(d)"},
	"a handle":          {"d = posix.open(library + '/xml/sax', posix.O_PATH)", "posix.close(d)"},
	"where it is":       {"posix.chdir(library + '/ctypes')", "posix.chdir('/')"},
	"in a child":        {"d = posix.open(library + '/xml', 0); r, w = posix.pipe()\nchild = posix.fork()\nif not child: posix.close(w); posix.read(r, 1); posix._exit(0)\nposix.close(d)", "posix.close(w); posix.close(r); posix.waitpid(child, 0)"},
	"on its way":        {"d = posix.open(library + '/ctypes', 0); a, b = _socket.socketpair(); a.sendmsg([b'x'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, d.to_bytes(4, 'little'))]); posix.close(d)", "a.close(); b.close()"},
	"out of band":       {"d = posix.open(library + '/ctypes', 0); a, b = _socket.socketpair(); a.sendmsg([b'x'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, d.to_bytes(4, 'little'))], _socket.MSG_OOB); posix.close(d)", "a.close(); b.close()"},
	"not yet accepted":  {"d = posix.open(library + '/ctypes', 0); a, b = _socket.socket(_socket.AF_UNIX), _socket.socket(_socket.AF_UNIX)\na.bind('/tmp/s'); a.listen(); b.connect('/tmp/s'); b.sendmsg([b'x'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, d.to_bytes(4, 'little'))]); posix.close(d)", "a.close(); b.close(); posix.unlink('/tmp/s')"},
	"on its way, twice": {"d = posix.open(library + '/ctypes', 0); a, b = _socket.socketpair(); c, e = _socket.socketpair()\nfor s, fd in (a, d), (c, b.fileno()): s.sendmsg([b'x'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, 'little'))])\nposix.close(d); b.close()", "a.close(); c.close(); e.close()"},
}

// takingBack tries every way to the files that there is from what a container may keep: it has
// opened files, mapped them, loaded modules, and holds directories above.
const takingBack = `
import posix, sys, mmap
root, lib, psi = (posix.open(d, posix.O_PATH) for d in ("/", "/usr/lib", "/usr/lib/psi"))
kept = posix.open(library + "/subprocess.py", posix.O_RDONLY)
extension = library + "/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so"
mapped = mmap.mmap(posix.open(extension, 0), 0, prot=mmap.PROT_READ)
import ctypes, xml
external = sys.modules["_frozen_importlib_external"]
targets = [library + n for n in ("/subprocess.py", "/__pycache__/subprocess.cpython-311.pyc", "/ctypes/__init__.py", "/xml/sax/handler.py")] + [extension, "/usr/lib/x86_64-linux-gnu/libffi.so.8"]
`

const tookBack = `
def content(path, at=None):
    fd = posix.open(path, posix.O_RDONLY, dir_fd=at)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m: return m[:10]
    except ValueError:
        return posix.read(fd, 10)
    finally:
        posix.close(fd)
def through(path):
    fd = posix.open(path, posix.O_PATH)
    try: return content(f"/proc/self/fd/{fd}")
    finally: posix.close(fd)
def renamed(path):
    posix.rename(path, "/usr/lib/x")
    try: return content("/usr/lib/x")
    finally: posix.rename("/usr/lib/x", path)
def linked(path):
    posix.link(path, "/usr/lib/y")
    try: return content("/usr/lib/y")
    finally: posix.unlink("/usr/lib/y")
def symlinked(path):
    posix.symlink(path, "/tmp/z")
    try: return content("/tmp/z")
    finally: posix.unlink("/tmp/z")
def inside(path):
    at = posix.open(library, posix.O_RDONLY)
    try: return content("../" + path[len("/usr/lib/"):], at)
    finally: posix.close(at)
def child(path):
    r, w = posix.pipe()
    pid = posix.fork()
    if not pid:
        try: posix.write(w, content(path))
        except BaseException: pass
        posix._exit(0)
    posix.close(w); posix.waitpid(pid, 0)
    try: return posix.read(r, 10)
    finally: posix.close(r)
def loaded(path):
    name = path.split("/")[-1].split(".")[0]
    for key in list(sys.modules):
        if key.split(".")[0] in ("subprocess", "ctypes", "xml", "_ctypes"): del sys.modules[key]
    if ".so" in path: return b"" # it is loaded, and stays so
    kind = external.SourcelessFileLoader if path.endswith("c") else external.SourceFileLoader
    return kind(name, path).get_code(name) and kind(name, path).get_data(path)
ways = {
    "by path": content, "through /proc/self/root": lambda p: content("/proc/self/root" + p), "through /proc/1/root": lambda p: content("/proc/1/root" + p),
    "through a link": lambda p: content(p[len("/usr"):]), "from the root": lambda p: content(p[1:], root), "from above": lambda p: content(p[len("/usr/lib/"):], lib),
    "from beside": lambda p: content("../" + p[len("/usr/lib/"):], psi), "from within": inside, "by a handle": through,
    "renamed": renamed, "linked": linked, "symlinked": symlinked, "in a child": child, "loaded": loaded,
}
for way, attempt in ways.items():
    for path in targets:
        try: got = attempt(path)
        except BaseException as error: got = b""
        if got: print("ESCAPED:", way, path, got)
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "ImportRules"]
for name in "subprocess", "_ctypes", "ctypes", "xml.sax":
    for key in list(sys.modules):
        if key.split(".")[0] == name.split(".")[0]: del sys.modules[key]
    sys.path_importer_cache.clear()
    try:
        if sys.modules["_frozen_importlib"]._gcd_import(name).__spec__.origin: print("ESCAPED: imported", name) # else an empty directory
    except ImportError: pass
print("kept" if posix.read(kept, 10) and mapped[:4] == b"\x7fELF" else "what was open is gone")
print("math" if __import__("math").sqrt(4) == 2 else "")
`

// A container whose list is tightened while it runs keeps what it has open, mapped and loaded, and
// gets at nothing else.
func TestApplyImportsToWhoKeepsThem(t *testing.T) {
	importers(t, func(t *testing.T, i *importer) {
		i.does("import posix, sys, _socket; library = '/usr/lib/python%d.%d' % sys.version_info[:2]")
		for name, code := range keeping {
			if name == "not yet accepted" && i.id == "own" {
				continue // it can listen nowhere
			}
			t.Run(name, func(t *testing.T) {
				if said := i.does(code[0]); said != "" {
					t.Fatal(said)
				}
				i.refused(narrow, "reloading the files of container "+i.id+`: policy: imports: the guest has something open there: process [0-9]+ has (the directory "/usr/lib/python3|a socket in which 1 descriptors are under way).*: have it close or receive that, or end the container`)
				if said := i.does(code[1]); said != "" {
					t.Fatal(said)
				}
			})
		}
		if said := i.does(takingBack); said != "" {
			t.Fatal(said)
		}
		if said := i.does(tookBack); strings.Count(said, "ESCAPED") < 50 {
			t.Errorf("before: %s", said)
		}
		for range 2 { // the second time over what the first put there
			i.applies(narrow)
			if said := i.does(tookBack); said != "kept\nmath\n" {
				t.Errorf("%s", said)
			}
			i.does("posix.lseek(kept, 0, 0)")
			i.applies("imports: [sys, posix, mmap, _socket, math, csv]")
		}
	})
}

// However often the list changes, whatever of what it shows a container keeps open, there are no more
// mounts than after the first time. A program that runs from there is in the way.
func TestApplyImportsOverAndOver(t *testing.T) {
	l, bundle := newLine(t), filepath.Join(t.TempDir(), "bundle")
	l.ok("bundle", "--policy", write(t, "before.yml", wide), "--entry", write(t, "entry.py", runner), "--rootfs", pythonRoot(t), "-o", bundle)
	const library = "/usr/lib/python3.11"
	python, err := os.ReadFile(bundle + "/rootfs/usr/bin/python3.11")
	if err == nil {
		err = os.WriteFile(bundle+"/rootfs"+library+"/program", python, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	i := importerOf(l, "own", bundle)
	mounts := func() int {
		return strings.Count(l.ok("exec", i.id, "/usr/bin/python3", "-I", "-S", "-c", "print(open('/proc/1/mountinfo').read())"), "\n")
	}
	i.does("import posix; kept = []; library = '" + library + "'")
	i.applies(narrow)
	first := mounts()
	for n, policy := range []string{"imports: [sys, posix, csv]", narrow, "imports: [sys, posix]", wide, narrow} {
		i.does("kept += [posix.open(library + n, posix.O_RDONLY) for n in ('/types.py', '/os.py', '/encodings/utf_8.py')]")
		i.applies(policy)
		if now := mounts(); now > first {
			t.Errorf("%d mounts after %d changes, %d after the first", now, n+2, first)
		}
	}
	if said := i.does("print(all(posix.read(fd, 10) for fd in kept))"); said != "True\n" {
		t.Errorf("of what it has kept it reads: %s", said)
	}
	if said := i.does("child = posix.posix_spawn(library + '/program', ['python3', '-I', '-S', '-c', 'import time; time.sleep(1000)'], {'PYTHONHOME': '/usr'})"); said != "" {
		t.Fatal(said)
	}
	i.refused(wide, "files of container own: policy: .*: process [0-9]+ runs a program that lies in "+library+", of which files are hidden: have it ")
	i.does("posix.kill(child, 9); posix.waitpid(child, 0)")
	i.applies(wide)
}

// A container that may write its image moves what is masked, and writes another graph: it is shown
// nothing by that.
func TestApplyImportsToAWrittenImage(t *testing.T) {
	i := engineImporter(t)
	i.does("import posix, sys; library = '/usr/lib/python%d.%d' % sys.version_info[:2]")
	i.applies("imports: [sys, posix, mmap]")
	if said := i.does(`
graph = open("/usr/lib/psi/modules.json", "rb").read()
open("/usr/lib/psi/modules.json", "wb").write(graph.replace(b'"base": [', b'"base": ["subprocess", "ctypes", '))
posix.rename(library + "/lib-dynload", library + "/moved")
posix.mkdir(library + "/lib-dynload")
open(library + "/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so", "w").close()`); said != "" {
		t.Fatal(said)
	}
	i.refused("imports: [sys, posix, mmap, ctypes]", `the mask of /usr/lib/python3.11/lib-dynload/.* is at "/usr/lib/python3.11/moved/.*" now: somebody has moved the directory`)
	const find = "print(*[n for d in ('moved', 'lib-dynload', '') for n in ('_ctypes.cpython-311-x86_64-linux-gnu.so', 'subprocess.py') if readable(library + '/' + d + '/' + n)])"
	if said := i.does(opens + "\n" + find); said != "types \n" {
		t.Errorf("it opens %q", said)
	}
	i.does("posix.unlink(library + '/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so'); posix.rmdir(library + '/lib-dynload'); posix.rename(library + '/moved', library + '/lib-dynload')")
	i.applies("imports: [sys, posix, mmap, csv]")
	if said := i.does(opens); said != "csv csv types " {
		t.Errorf("it opens %q", said)
	}
}
