package rootfs

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOmissionsDocumented: docs/rootfs.md holds the same list, line by line.
func TestOmissionsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/rootfs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- omissions:")
	table, _, _ = strings.Cut(table, "Of site packages:")
	var documented, actual []omission
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.+) \\|$").FindAllStringSubmatch(table, -1) {
		documented = append(documented, omission{row[1], row[2]})
	}
	for _, o := range omissions() {
		actual = append(actual, o)
		if !slices.Contains(documented, o) {
			t.Errorf("docs/rootfs.md lacks | `%s` | %s |", o.pattern, o.reason)
		}
	}
	for _, o := range documented {
		if !slices.Contains(actual, o) {
			t.Errorf("docs/rootfs.md has %q (%s), which is not left out for that reason", o.pattern, o.reason)
		}
	}
}

// TestLocaltime: /etc/localtime is UTC by its own content.
func TestLocaltime(t *testing.T) {
	zone, err := time.LoadLocationFromTZData("psi", []byte(utcZone()))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{time.Unix(0, 0), time.Now(), time.Unix(1<<40, 0)} {
		if name, offset := at.In(zone).Zone(); name != "UTC" || offset != 0 {
			t.Errorf("%s is %s%+d", at, name, offset)
		}
	}
}

// TestResolve follows links as the kernel does inside the root.
func TestResolve(t *testing.T) {
	root := newTree()
	root.bytes("usr/lib/file", nil)
	root.symlink("lib", "usr/lib")
	root.symlink("usr/lib/up", "../..")
	root.symlink("usr/absolute", "/lib/file")
	root.symlink("loop", "loop2")
	root.symlink("loop2", "/loop")
	root.symlink("out", "../../../usr/lib/file")
	for path, want := range map[string]string{
		"/lib/file": "usr/lib/file", "usr/lib/../lib/file": "usr/lib/file", "lib/up/lib/up/usr/absolute": "usr/lib/file",
		"/usr/absolute": "usr/lib/file", "lib/../lib/file": "usr/lib/file", "lib/../../usr/lib/file": "usr/lib/file", "out": "usr/lib/file", "/lib": "usr/lib",
		"loop": "", "missing": "", "lib/missing": "", "usr/lib/file/below": "",
	} {
		e, ok := root.resolve(path)
		if ok != (want != "") || ok && e.path != want {
			t.Errorf("%s: %+v %v, want %q", path, e, ok, want)
		}
	}
}

// TestCompiledInPaths: interpreters with another library directory, or free
// threading, find the library where theirs is compiled in; and a lib-dynload
// that lies elsewhere comes along.
func TestCompiledInPaths(t *testing.T) {
	stdlib := writeTree(t, map[string]string{"os.py": "", "test/x.py": "", "json/__init__.py": ""})
	dynload := writeTree(t, map[string]string{"_json.so": "", "_testcapi.so": ""})
	b := &builder{tree: newTree(), python: interpreter{
		Version: []int{3, 14, 0}, Stdlib: stdlib, Dynload: dynload, PlatLibDir: "lib64", ABIThread: "t",
	}}
	if err := b.addStdlib(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/usr/lib/python3.14/os.py", "/usr/lib/python3.14t/os.py", "/usr/lib64/python3.14t/os.py",
		"/usr/lib64/python3.14t/lib-dynload/_json.so",
	} {
		if _, ok := b.tree.resolve(path); !ok {
			t.Errorf("%s is not there", path)
		}
	}
	for _, path := range []string{"/usr/lib/python3.14/test", "/usr/lib/python3.14/lib-dynload/_testcapi.so"} {
		if _, ok := b.tree.resolve(path); ok {
			t.Errorf("%s is there", path)
		}
	}
	b = &builder{tree: newTree(), python: interpreter{Version: []int{3, 11, 0}, Stdlib: t.TempDir()}}
	if err := b.addStdlib(context.Background()); err == nil {
		t.Error("a library without os.py is accepted")
	}
}
