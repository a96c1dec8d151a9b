package policy

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestBuiltins(t *testing.T) {
	files, err := builtinFiles.ReadDir("builtin")
	if err != nil || len(files) != len(Names()) {
		t.Errorf("%d files for %d names, %v", len(files), len(Names()), err)
	}
	for _, name := range Names() {
		p, err := Named(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(p.FS()) != 0 || len(p.TCP()) != 0 || p.AllowDegraded() {
			t.Errorf("%s opens something: %s", name, p.Canonical())
		}
		if err := checkName(name); err != nil || IsPath(name) {
			t.Errorf("%s is not a name: %v", name, err)
		}
		if text, err := Describe(name); err != nil || len(text) < 40 || !strings.HasSuffix(text, ".") {
			t.Errorf("%s is described as %q, %v", name, text, err)
		}
	}
	var e *Error
	if _, err := Named("default"); !errors.As(err, &e) || e.Nearest != "defaults" {
		t.Errorf("an unknown name: %v", err)
	}
	if _, err := Describe("../builtin/defaults"); err == nil {
		t.Error("a path is described")
	}
}

func TestBuiltinDefaults(t *testing.T) {
	if p := must(t)(Named("defaults")); p.Digest() != Defaults().Digest() {
		t.Errorf("builtin/defaults.yml is %s", p.Canonical())
	}
}

// TestBuiltinMeanings holds what the table of Names promises.
func TestBuiltinMeanings(t *testing.T) {
	has := func(p Policy, name string) bool {
		modules, limited := p.Imports()
		return !limited || slices.Contains(modules, name)
	}
	d := defaultLimits()
	for _, test := range []struct {
		name                  string
		readOnly, tmp, others bool // others: modules beside the standard library
		socket, math          bool
		mem                   func(int64) bool
	}{
		{"defaults", false, true, true, true, true, func(m int64) bool { return m == d.Mem }},
		{"stdlib.readonly", true, false, false, true, true, func(m int64) bool { return m == d.Mem }},
		{"readonly-fs", true, true, true, true, true, func(m int64) bool { return m == d.Mem }},
		{"compute-only", true, false, false, false, true, func(m int64) bool { return m < d.Mem }},
		{"ml-inference", false, true, true, true, true, func(m int64) bool { return m > d.Mem }},
		{"web-scraper", true, true, false, true, true, func(m int64) bool { return m > d.Mem }},
	} {
		p := must(t)(Named(test.name))
		if p.ReadOnly() != test.readOnly || (p.Limits().Tmp > 0) != test.tmp || has(p, "numpy") != test.others ||
			has(p, "socket") != test.socket || has(p, "math") != test.math || !test.mem(p.Limits().Mem) {
			t.Errorf("%s is %s", test.name, p.Canonical())
		}
		if _, err := p.AllowFS("/srv/out/**", Write); (err != nil) != test.readOnly {
			t.Errorf("%s with a write rule: %v", test.name, err)
		}
		q := must(t)(p.AllowTCP("api.example.com:443"))
		must(t)(q.AllowFS("/srv/data/**", Read))
	}
	if p := must(t)(Named("web-scraper")); !has(p, "requests") || !has(p, "urllib") || !has(p, "html") || has(p, "subprocess") {
		t.Errorf("web-scraper may import %s", p.Canonical())
	}
}

// TestStdlibIsWhole compares the list with what an interpreter says of itself.
func TestStdlibIsWhole(t *testing.T) {
	python := "/usr/bin/python3" // the distribution's; another one when it is not there
	if _, err := exec.LookPath(python); err != nil {
		python = "python3"
	}
	out, err := exec.Command(python, "-I", "-S", "-c", "import sys; print(*sorted(sys.stdlib_module_names))").Output()
	if err != nil {
		t.Fatalf("asking %s for the modules of the standard library: %v", python, err)
	}
	modules, _ := must(t)(Named("stdlib.readonly")).Imports()
	leftOut := []string{
		"msilib", "msvcrt", "nt", "winreg", "winsound", // of another system
		"idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "ensurepip", "pydoc_data", "distutils", // not in the root filesystem
		"antigravity", "this", // jokes
	}
	for _, name := range strings.Fields(string(out)) {
		if !strings.HasPrefix(name, "_") && !slices.Contains(modules, name) && !slices.Contains(leftOut, name) {
			t.Errorf("%s is not in stdlib.readonly", name)
		}
	}
	for _, name := range []string{"numpy", "requests", "yaml"} {
		if slices.Contains(modules, name) {
			t.Errorf("%s is in stdlib.readonly", name)
		}
	}
}
