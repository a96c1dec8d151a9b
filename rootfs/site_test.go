package rootfs

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// debianPackages is where Debian's python3-numpy and python3-pandas are.
const debianPackages = "/usr/lib/python3/dist-packages"

// TestDebianPackages packs all of Debian's packages and uses numpy and pandas,
// whose BLAS and LAPACK are reached through /etc/alternatives.
func TestDebianPackages(t *testing.T) {
	for _, name := range []string{"numpy", "pandas"} {
		if _, err := os.Stat(filepath.Join(debianPackages, name)); err != nil {
			t.Fatalf("%v: install python3-%s", err, name)
		}
	}
	report := build(t, Options{SitePackages: []string{debianPackages}})
	t.Logf("%d bytes, %d files", report.Size, report.Files)
	out := inGuest(t, report.Path, "-c", `
import sys
sys.path.append("/usr/lib/python3.%d/site-packages" % sys.version_info[1])
import numpy, pandas
assert numpy.__file__.startswith("/usr/lib/python3."), numpy.__file__
a = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)
assert numpy.allclose(numpy.linalg.inv(a) @ a, numpy.eye(3))
frame = pandas.DataFrame({"at": pandas.date_range("2024-01-01", periods=3, tz="Europe/Berlin"), "x": [1, 2, 3]})
print(frame.x.mean(), frame["at"].dt.tz)`)
	if out != "2.0 Europe/Berlin\n" {
		t.Errorf("guest said %q", out)
	}
	checkNumerics(t, report.Path, report.Python)
	for _, lib := range []string{"libblas.so.3", "liblapack.so.3", "libgfortran.so.5", "libquadmath.so.0"} {
		found, err := filepath.Glob(filepath.Join(report.Path, "usr/lib/*", lib))
		if err != nil || len(found) != 1 {
			t.Errorf("%s: %v %v", lib, found, err)
			continue
		}
		if info, err := os.Lstat(found[0]); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s is not a plain file: %v", lib, err)
		}
	}
	if target, err := os.Readlink(filepath.Join(report.Path, "usr/lib/python3/dist-packages")); err != nil ||
		target != "../python"+report.Python+"/site-packages" {
		t.Errorf("dist-packages → %s %v", target, err)
	}
}

// writeTree writes files below a new directory. Content beginning with "→"
// makes a link.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(content, "→")
		var err error
		if link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// planSite plans package directories without building anything.
func planSite(t *testing.T, dirs ...string) *builder {
	t.Helper()
	b := &builder{
		options: Options{SitePackages: dirs, Progress: func(string) {}},
		python:  interpreter{Version: []int{3, 11, 2}, CacheTag: "cpython-311"},
		tree:    newTree(),
	}
	if err := b.addSitePackages(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b
}

// planned returns what is planned below the site directory, except directories.
func planned(b *builder) []string {
	var names []string
	for _, e := range b.tree.sorted() {
		rel, ok := strings.CutPrefix(e.path, b.python.sitePath()+"/")
		if ok && e.kind != typeDir {
			names = append(names, rel)
		}
	}
	return names
}

func expect(t *testing.T, b *builder, want ...string) {
	t.Helper()
	if got := planned(b); !slices.Equal(got, want) {
		t.Errorf("planned %q, want %q", got, want)
	}
}

func expectLeftOut(t *testing.T, b *builder, name, reason string) {
	t.Helper()
	for _, line := range b.leftOut {
		if strings.HasPrefix(line, "/"+b.python.sitePath()+"/"+name+": ") && strings.Contains(line, reason) {
			return
		}
	}
	t.Errorf("%s: not left out because of %q: %q", name, reason, b.leftOut)
}

// TestSiteContent: what of a package directory goes into the root.
func TestSiteContent(t *testing.T) {
	outside := writeTree(t, map[string]string{"secret.txt": "data", "pkg/a.py": "", "pkg/deep/b.py": ""})
	dir := writeTree(t, map[string]string{
		"mod.py": "", "mod.pyc": "stale", "onlybytecode.pyc": "kept",
		"pkg/__init__.py": "", "pkg/__pycache__/x.pyc": "stale", "pkg/data.bin": "data",
		"pkg/lib.so": "→lib.so.1", "pkg/lib.so.1": "library", "pkg/alias.py": "→__init__.py",
		"pkg/libx.a": "archive", "hook.pth": "import os", "sitecustomize.py": "",
		"linked": "→" + filepath.Join(outside, "pkg"), "file.txt": "→" + filepath.Join(outside, "secret.txt"),
		"dangling": "→nowhere", "pkg/loop": "→..", "toskipped": "→hook.pth", "pkg/escape": "→../../../etc",
	})
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := planSite(t, dir)
	expect(t, b, "file.txt", "linked/a.py", "linked/deep/b.py", "mod.py", "onlybytecode.pyc",
		"pkg/__init__.py", "pkg/alias.py", "pkg/data.bin", "pkg/lib.so", "pkg/lib.so.1", "pkg/loop", "toskipped")
	site := b.python.sitePath()
	if e := b.tree.entries[site+"/pkg/lib.so"]; e.kind != typeLink || e.link != "lib.so.1" {
		t.Errorf("link inside the directory became %+v", e)
	}
	for _, name := range []string{"file.txt", "pkg/alias.py", "toskipped"} {
		if e := b.tree.entries[site+"/"+name]; e.kind != typeFile {
			t.Errorf("%s is %c, want a file", name, e.kind)
		}
	}
	expectLeftOut(t, b, "fifo", "neither file")
	expectLeftOut(t, b, "dangling", "link to nothing")
	expectLeftOut(t, b, "pkg/escape", "link to nothing")
	expectLeftOut(t, b, "hook.pth", "start-up hook")
	expectLeftOut(t, b, "sitecustomize.py", "start-up hook")
	expectLeftOut(t, b, "pkg/libx.a", "static library")
}

// TestSiteCycle: a directory link to a directory above itself, through a link
// that leaves the tree, ends.
func TestSiteCycle(t *testing.T) {
	dir := writeTree(t, map[string]string{"pkg/mod.py": ""})
	if err := os.Symlink(dir, filepath.Join(dir, "pkg/up")); err != nil {
		t.Fatal(err)
	}
	b := planSite(t, dir)
	expect(t, b, "pkg/mod.py")
	expectLeftOut(t, b, "pkg/up", "directory above itself")
}

// TestSiteMerge: directories are merged as sys.path would look through them.
func TestSiteMerge(t *testing.T) {
	first := writeTree(t, map[string]string{"both/__init__.py": "1", "space/one.py": "", "single.py": "1", "space2/__init__.py": ""})
	second := writeTree(t, map[string]string{
		"both/__init__.py": "2", "both/extra.py": "", "space/two.py": "", "single.py": "2", "third.py": "", "space2/x.py": "",
	})
	b := planSite(t, first, second)
	expect(t, b, "both/__init__.py", "single.py", "space/one.py", "space/two.py", "space2/__init__.py", "third.py")
	if e := b.tree.entries[b.python.sitePath()+"/single.py"]; !strings.HasPrefix(e.source, first) {
		t.Errorf("single.py comes from %s", e.source)
	}
	expectLeftOut(t, b, "both", "earlier")
	expectLeftOut(t, b, "space2", "earlier")
}

// TestSiteRefused: directories that cannot be right are refused.
func TestSiteRefused(t *testing.T) {
	file := writeTree(t, map[string]string{"file": "", "lib/python3.12/site-packages/x.py": "", "venv/pyvenv.cfg": ""})
	for path, want := range map[string]string{
		"/nonexistent/site":                                 "give a directory of packages, such as VENV/lib/python3.11/site-packages",
		filepath.Join(file, "file"):                         "is not a directory",
		filepath.Join(file, "venv"):                         "lib/python3.11/site-packages",
		filepath.Join(file, "lib/python3.12/site-packages"): "it belongs to python3.12 and the interpreter is python3.11",
	} {
		b := &builder{options: Options{SitePackages: []string{path}}, python: interpreter{Version: []int{3, 11, 2}}, tree: newTree()}
		err := b.addSitePackages(context.Background())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestUncompilable: a source that does not compile stays, without bytecode,
// and the report says so.
func TestUncompilable(t *testing.T) {
	dir := writeTree(t, map[string]string{"good.py": "x = 1\n", "template.py": "{{ not python }\n", "nul.py": "a\x00b"})
	report := build(t, Options{SitePackages: []string{dir}})
	for _, name := range []string{"template.py", "nul.py"} {
		want := "/usr/lib/python" + report.Python + "/site-packages/" + name + ": no bytecode, the source does not compile"
		if !slices.ContainsFunc(report.LeftOut, func(line string) bool { return strings.HasPrefix(line, want) }) {
			t.Errorf("report does not say %q", want)
		}
		if _, err := os.Stat(filepath.Join(report.Path, "usr/lib/python"+report.Python, "site-packages", name)); err != nil {
			t.Error(err)
		}
	}
}
