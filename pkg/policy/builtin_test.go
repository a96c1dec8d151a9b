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
		if len(p.FS()) != 0 || len(p.Endpoints()) != 0 || p.AllowDegraded() {
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
		{"pypi-install", false, true, true, true, true, func(m int64) bool { return m > d.Mem }},
		{"agent", false, true, true, true, true, func(m int64) bool { return m > d.Mem }},
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

// TestBuiltinsPermitAndForbid says of each built-in policy, with what its caller adds,
// what a guest may do and what not.
func TestBuiltinsPermitAndForbid(t *testing.T) {
	for _, test := range []struct {
		name            string
		write, read     string   // fs rules that the caller adds
		tcp             []string // likewise
		permits, denies []string
	}{
		{name: "defaults", permits: []string{"import:numpy", "import:socket"},
			denies: []string{"read:/etc/shadow", "read:/srv/data/a", "net:127.0.0.1:80", "net:api.example.com:443", "net:169.254.169.254:80"}},
		{name: "stdlib.readonly", read: "/srv/data/**", permits: []string{"import:json", "import:xml.etree", "read:/srv/data/a/b"},
			denies: []string{"import:numpy", "import:requests", "write:/srv/data/a", "write:/tmp/x", "net:127.0.0.1:80"}},
		{name: "readonly-fs", read: "/srv/data/*.csv", permits: []string{"read:/srv/data/a.csv", "import:pandas"},
			denies: []string{"write:/srv/data/a.csv", "read:/srv/data/a.txt", "read:/srv/data/b/a.csv", "net:10.0.0.1:80"}},
		{name: "compute-only", permits: []string{"import:math", "import:json", "import:statistics"},
			denies: []string{"import:socket", "import:os.path", "import:subprocess", "import:ctypes", "read:/srv/data", "net:127.0.0.1:80"}},
		{name: "ml-inference", read: "/srv/models/**", permits: []string{"import:numpy", "import:torch", "read:/srv/models/a.bin"},
			denies: []string{"write:/srv/models/a.bin", "net:huggingface.co:443"}},
		{name: "web-scraper", tcp: []string{"*.example.org:443"}, permits: []string{"import:requests", "import:urllib.request", "net:www.example.org:443"},
			denies: []string{"import:subprocess", "net:example.com:443", "net:www.example.org:80", "net:127.0.0.1:443", "net:169.254.169.254:443"}},
		{name: "pypi-install", write: "/srv/packages/**", tcp: []string{"pypi.org:443", "files.pythonhosted.org:443"},
			permits: []string{"net:pypi.org:443", "net:files.pythonhosted.org:443", "write:/srv/packages/numpy/a.py", "import:pip"},
			denies: []string{"net:pypi.org:80", "net:test.pypi.org:443", "net:example.com:443", "net:10.0.0.1:443", "net:169.254.169.254:443",
				"write:/srv/other", "read:/root/.pypirc", "udp:8.8.8.8:53"}},
		{name: "agent", write: "/srv/work", tcp: []string{"api.example.com:443", "*.example.org:443"},
			permits: []string{"write:/srv/work/src/a.py", "read:/srv/work/README", "net:api.example.com:443", "net:git.example.org:443", "import:subprocess"},
			denies: []string{"write:/srv/workshop", "read:/home/me/.ssh/id", "net:example.com:443", "net:api.example.com:22", "net:127.0.0.1:443",
				"net:169.254.169.254:443", "net:10.0.0.1:443", "udp:8.8.8.8:53"}},
	} {
		p := must(t)(Named(test.name))
		if test.write != "" {
			p = must(t)(p.AllowFS(test.write, Write))
		}
		if test.read != "" {
			p = must(t)(p.AllowFS(test.read, Read))
		}
		for _, e := range test.tcp {
			p = must(t)(p.AllowTCP(e))
		}
		for _, what := range test.permits {
			if !permits(t, p, what) {
				t.Errorf("%s does not permit %s", test.name, what)
			}
		}
		for _, what := range test.denies {
			if permits(t, p, what) {
				t.Errorf("%s permits %s", test.name, what)
			}
		}
	}
}

// permits asks the pure decisions, not the mechanisms that hold them.
func permits(t *testing.T, p Policy, what string) bool {
	t.Helper()
	kind, value, _ := strings.Cut(what, ":")
	switch kind {
	case "read", "write":
		access, _ := DecideFS(p.FS(), value)
		return access&MayRead != 0 && (kind == "read" || access&MayWrite != 0)
	case "import":
		allowed, _ := p.DecideImport(value)
		return allowed
	}
	want, err := ParseEndpoint(value)
	if err != nil {
		t.Fatal(err)
	}
	open := p.TCP()
	if kind == "udp" {
		open = p.UDP()
	}
	return slices.ContainsFunc(open, func(e Endpoint) bool {
		if !e.overlapsPorts(want) {
			return false
		}
		block, ok := e.Prefix()
		address, isAddress := want.Prefix()
		return ok && isAddress && inside(address, block) || !ok && !isAddress && e.CoversName(want.Host)
	})
}
