package rootfs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compileLibrary makes a real shared library that needs others, with gcc.
func compileLibrary(t *testing.T, path string, flags ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gcc", append([]string{"-shared", "-fPIC", "-nostdlib", "-x", "c", "-", "-x", "none", "-o", path,
		"-Wl,-soname," + filepath.Base(path), "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"}, flags...)...)
	cmd.Stdin = strings.NewReader("int psi_test;\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%.2000s", path, err, out)
	}
}

// TestSearchOrder compares the loader's order with ld.so(8), case by case.
func TestSearchOrder(t *testing.T) {
	dir := t.TempDir()
	for _, place := range []string{"rpath", "runpath", "origin/lib", "library", "default"} {
		compileLibrary(t, filepath.Join(dir, place, "libx.so"))
	}
	object := func(name string, flags ...string) *elfObject {
		path := filepath.Join(dir, "origin", name)
		compileLibrary(t, path, append(flags, filepath.Join(dir, "default/libx.so"))...)
		o, ok, err := readELF(path, path)
		if err != nil || !ok || !slices.Equal(o.needed, []string{"libx.so"}) {
			t.Fatalf("%s: %+v %v %v", name, o, ok, err)
		}
		return o
	}
	old, modern := "-Wl,--disable-new-dtags", "-Wl,--enable-new-dtags"
	rpath := object("rpath.so", old, "-Wl,-rpath,"+dir+"/rpath")
	runpath := object("runpath.so", modern, "-Wl,-rpath,"+dir+"/none:"+dir+"/runpath")
	origin := object("origin.so", modern, "-Wl,-rpath,$ORIGIN/lib")
	bare := object("bare.so")
	for _, test := range []struct {
		name    string
		chain   []*elfObject
		library bool
		want    string
	}{
		{"default", []*elfObject{bare}, false, "default"},
		{"LD_LIBRARY_PATH", []*elfObject{bare}, true, "library"},
		{"RPATH before LD_LIBRARY_PATH", []*elfObject{rpath}, true, "rpath"},
		{"RUNPATH after LD_LIBRARY_PATH", []*elfObject{runpath}, true, "library"},
		{"RUNPATH before default", []*elfObject{runpath}, false, "runpath"},
		{"$ORIGIN", []*elfObject{origin}, false, "origin/lib"},
		{"RPATH of the loading object", []*elfObject{rpath, bare}, false, "rpath"},
		{"RUNPATH is not inherited", []*elfObject{runpath, bare}, false, "default"},
		{"RUNPATH switches inherited RPATH off", []*elfObject{rpath, runpath}, false, "runpath"},
	} {
		l := &loader{
			locate: func(path string) (string, bool) { _, err := os.Stat(path); return path, err == nil },
			dirs:   []string{dir + "/default"}, cache: map[string]*elfObject{},
		}
		if test.library {
			l.library = []string{dir + "/library"}
		}
		opened, _, ok := l.find("libx.so", test.chain)
		if want := filepath.Join(dir, test.want, "libx.so"); !ok || opened != want {
			t.Errorf("%s: found %s %v, want %s", test.name, opened, ok, want)
		}
	}
}

// TestForeignObjects: the search passes over what the loader cannot load.
func TestForeignObjects(t *testing.T) {
	dir := t.TempDir()
	compileLibrary(t, dir+"/good/libx.so")
	library, err := os.ReadFile(dir + "/good/libx.so")
	if err != nil {
		t.Fatal(err)
	}
	foreign := slices.Clone(library)
	foreign[18], foreign[19] = 243, 0 // e_machine: RISC-V
	for place, content := range map[string][]byte{
		"machine": foreign, "script": []byte("/* GNU ld script */ GROUP ( libx.so.1 )"), "empty": nil, "cut": library[:30],
	} {
		if err := writeNewFile(filepath.Join(dir, place, "libx.so"), content); err != nil {
			t.Fatal(err)
		}
	}
	program, _, err := readELF(dir+"/good/libx.so", dir+"/good/libx.so")
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{
		locate: func(path string) (string, bool) { _, err := os.Stat(path); return path, err == nil },
		dirs:   []string{dir + "/none", dir + "/machine", dir + "/script", dir + "/empty", dir + "/cut", dir + "/good"},
		cache:  map[string]*elfObject{},
	}
	if opened, _, ok := l.find("libx.so", []*elfObject{program}); !ok || opened != dir+"/good/libx.so" {
		t.Errorf("found %s %v", opened, ok)
	}
}

// TestLoaderConfig reads ld.so.conf with includes, comments and old forms.
func TestLoaderConfig(t *testing.T) {
	dir := writeTree(t, map[string]string{
		"ld.so.conf":       "include conf.d/*.conf\n/opt/last # comment\nhwcap 1 nosegneg\n\n",
		"conf.d/10-a.conf": "/opt/a\n/opt/b:/opt/c, /opt/d\n",
		"conf.d/20-b.conf": "# nothing\n/opt/e\n",
		"conf.d/ignored":   "/opt/no\n",
		"loop.conf":        "include loop.conf\n",
	})
	got, err := readLoaderConfig(filepath.Join(dir, "ld.so.conf"), 0)
	if want := []string{"/opt/a", "/opt/b", "/opt/c", "/opt/d", "/opt/e", "/opt/last"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("read %q %v, want %q", got, err, want)
	}
	if got, err := readLoaderConfig(filepath.Join(dir, "missing.conf"), 0); err != nil || got != nil {
		t.Errorf("missing file: %v %v", got, err)
	}
	if _, err := readLoaderConfig(filepath.Join(dir, "loop.conf"), 0); err == nil {
		t.Error("a file that includes itself is accepted")
	}
}

// TestPackageLibraries builds a root with packages that bring, borrow and lack
// libraries, as wheels do.
func TestPackageLibraries(t *testing.T) {
	site, opt := t.TempDir(), t.TempDir()
	// A wheel: libraries beside the package, found by $ORIGIN; a link chain.
	compileLibrary(t, site+"/pkg.libs/libdeep.so.1")
	compileLibrary(t, site+"/pkg.libs/libown.so.1", site+"/pkg.libs/libdeep.so.1", "-Wl,-rpath,$ORIGIN")
	compileLibrary(t, site+"/pkg/ext.so", site+"/pkg.libs/libown.so.1", "-Wl,-rpath,$ORIGIN/../pkg.libs")
	// A library elsewhere on the host, through a link, which needs another.
	compileLibrary(t, opt+"/real/libinner-1.2.so")
	compileLibrary(t, opt+"/real/libborrowed.so.7", opt+"/real/libinner-1.2.so", "-Wl,-rpath,$ORIGIN/../real")
	if err := os.Symlink("real", opt+"/alternatives"); err != nil {
		t.Fatal(err)
	}
	compileLibrary(t, site+"/pkg/borrows.so", opt+"/real/libborrowed.so.7", "-Wl,-rpath,"+opt+"/alternatives")
	// One that the package loads by its path before it is needed, and one
	// that nobody has.
	compileLibrary(t, site+"/pkg/preloads.so", site+"/pkg.libs/libown.so.1")
	compileLibrary(t, opt+"/gone/libgone.so.3")
	compileLibrary(t, site+"/pkg/lacks.so", opt+"/gone/libgone.so.3")

	report := build(t, Options{SitePackages: []string{site}})
	lib := filepath.Join(report.Path, "usr/lib")
	for _, name := range []string{"libborrowed.so.7", "libinner-1.2.so"} {
		if found, err := filepath.Glob(filepath.Join(lib, "*", name)); err != nil || len(found) != 1 {
			t.Errorf("%s: %v %v", name, found, err)
		}
	}
	for _, name := range []string{"libown.so.1", "libdeep.so.1", "libgone.so.3"} {
		if found, err := filepath.Glob(filepath.Join(lib, "*", name)); err != nil || len(found) != 0 {
			t.Errorf("%s was copied: %v %v", name, found, err)
		}
	}
	lacking := slices.DeleteFunc(slices.Clone(report.LeftOut), func(line string) bool { return !strings.Contains(line, "will not load") })
	if len(lacking) != 1 || !strings.Contains(lacking[0], "lacks.so: needs libgone.so.3") {
		t.Errorf("report names as lacking: %q", lacking)
	}
	inGuest(t, report.Path, "-c", `
import ctypes, sys
site = "/usr/lib/python3.%d/site-packages/" % sys.version_info[1]
for name in "pkg/ext.so", "pkg/borrows.so", "pkg/preloads.so":
    ctypes.CDLL(site + name)`)
}

// TestLibraryNotFoundInside: a library that the loader would not find in the
// root stops the build.
func TestLibraryNotFoundInside(t *testing.T) {
	python, err := askInterpreter(context.Background(), systemPython)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{python: python, tree: newTree(), needs: map[string][]string{}, options: Options{Progress: func(string) {}}}
	if err := b.addInterpreter(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := b.addSystemFiles(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := b.addLibraries(context.Background()); err != nil {
		t.Fatal(err)
	}
	objects, err := b.elfEntries()
	if err != nil {
		t.Fatal(err)
	}
	program, _, err := readELF(python.Executable, python.Executable)
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.newClosure(program, objects)
	if err != nil {
		t.Fatal(err)
	}
	c.own = map[string]bool{}
	if err := c.prove(); err != nil {
		t.Fatal(err)
	}
	delete(b.tree.entries, c.dir+"/libm.so.6")
	if err := c.prove(); err == nil || !strings.Contains(err.Error(), "libm.so.6") {
		t.Errorf("a missing libm.so.6 gives %v", err)
	}
}
