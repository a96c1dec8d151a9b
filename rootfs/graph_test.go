package rootfs

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/modules"
)

//go:embed testdata/import_each.py
var importEach string

// checkGraph imports every module of a root, each in a process of its own, and wants
// what was loaded then to be in the closure of that one module.
func checkGraph(t *testing.T, root string) {
	graph, err := modules.Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]any{}
	if err := json.Unmarshal([]byte(inGuest(t, root, "-c", importEach)), &found); err != nil {
		t.Fatal(err)
	}
	imported := 0
	for name, answer := range found {
		loaded, ok := answer.([]any)
		if !ok {
			t.Logf("import %s: %v", name, answer) // checkImports says which modules must be importable
			continue
		}
		imported++
		c := graph.Closure([]string{name})
		for _, each := range loaded {
			if m, known := graph.Modules[each.(string)]; known && !c.Has(each.(string)) && m.File != "" {
				t.Errorf("import %s loads %s, which is not in its closure", name, each)
			}
		}
	}
	if imported < 450 {
		t.Errorf("only %d modules were imported", imported)
	}
}

// checkClosures looks at the closures of a few modules of any Python.
func checkClosures(t *testing.T, root string) {
	graph, err := modules.Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ allowed, in, out string }{
		{"", "encodings.latin_1 traceback datetime", "subprocess socket _socket _posixsubprocess _ctypes ctypes _ssl pickle"},
		{"math", "", "subprocess _posixsubprocess socket _socket ctypes _ctypes _ssl ssl multiprocessing mmap asyncio http.client"},
		{"json", "json.tool json.decoder argparse typing", "subprocess socket ctypes _ctypes ssl"},
		{"os", "subprocess", "ctypes socket _ctypes"},
		{"subprocess", "threading signal selectors", "ctypes socket"},
		{"collections", "heapq copy", "subprocess ctypes"},
		{"urllib.request", "http.client socket ssl email.message", "_ctypes asyncio"},
		{"ctypes", "ctypes.util _ctypes", "ssl asyncio"},
		{"uuid", "", "_ssl asyncio"},
		{"xml.sax", "xml.sax.expatreader", "ctypes"},
		{"logging", "logging.handlers pickle", "ctypes"},
	} {
		c := graph.Closure(strings.Fields(test.allowed))
		for _, name := range strings.Fields(test.in) {
			if !c.Has(name) {
				t.Errorf("the closure of %q lacks %s", test.allowed, name)
			}
		}
		for _, name := range strings.Fields(test.out) {
			if m := graph.Modules[name]; m.File != "" && (c.Has(name) || c.Shows(m.File)) {
				t.Errorf("the closure of %q holds %s", test.allowed, name)
			}
		}
	}
}

// checkHidden takes from a copy of a root what the closure of math hides, and runs it.
func checkHidden(t *testing.T, root string) {
	graph, err := modules.Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := graph.Closure([]string{"math"}).Hidden(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(hidden) || len(hidden) < 200 {
		t.Errorf("%d hidden, sorted: %v", len(hidden), slices.IsSorted(hidden))
	}
	copied := filepath.Join(t.TempDir(), "root")
	if err := os.CopyFS(copied, os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	for _, name := range hidden {
		if err := os.RemoveAll(filepath.Join(copied, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(copied, graph.Program), 0o755); err != nil {
		t.Fatal(err)
	}
	out := inGuest(t, copied, "-c", `
import math, traceback, datetime, decimal, fractions, pathlib, collections, sys
for name in ("ctypes", "_ctypes", "subprocess", "socket", "ssl", "asyncio", "json.tool", "_socket", "_posixsubprocess"):
    if name in sys.builtin_module_names: continue
    try: __import__(name)
    except ImportError: continue
    print(name, "was imported")
try: 1 / 0
except ZeroDivisionError: assert "ZeroDivisionError" in traceback.format_exc()
datetime.datetime.strptime("2024", "%Y")
collections.Counter("aab").most_common(1)
for codec in ("iso8859-2", "utf-16", "cp1252", "big5", "idna", "punycode", "shift_jis"):
    "a".encode(codec).decode(codec)
import codecs; codecs.encode(b"x", "zlib"), codecs.encode(b"x", "bz2"), codecs.encode(b"x", "base64")
b"\N{DEGREE SIGN}" if False else "\N{DEGREE SIGN}"
open("/etc/passwd").read()
print("fine")`)
	if out != "fine\n" {
		t.Errorf("guest said %q", out)
	}
}

// TestGraphOfSitePackages: packages import one another relatively, by computed names and
// from C; what is no module goes with its package.
func TestGraphOfSitePackages(t *testing.T) {
	site := writeTree(t, map[string]string{
		"outer/__init__.py":          "from .inner import thing\nfrom . import data\n",
		"outer/inner.py":             "import json, missing\ndef thing():\n    from ..other import x\n    import tomllib, subprocess\n",
		"outer/data/__init__.py":     "try:\n    import ctypes\nexcept ImportError:\n    ctypes = None\n",
		"outer/data/table.csv":       "1,2\n",
		"outer/unused.py":            "import csv\n",
		"typed.py":                   "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import outer\nif __name__ == '__main__':\n    import asyncio\n",
		"lazy/__init__.py":           "import importlib\ndef __getattr__(name):\n    return importlib.import_module('.' + name, __name__)\n",
		"lazy/part.py":               "import importlib\nimportlib.import_module('csv')\n",
		"space/deep/module.py":       "import outer.inner\n",
		"space/readme.txt":           "text\n",
		"outer-1.0.dist-info/RECORD": "x\n",
		"user.py":                    "import lazy\n",
	})
	report := build(t, Options{SitePackages: []string{site}})
	graph, err := modules.Read(os.DirFS(report.Path))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ allowed, in, out string }{
		{"outer", "outer.unused csv json tomllib subprocess ctypes", "typed lazy space.deep.module"},
		{"outer.inner", "outer outer.data ctypes json tomllib subprocess", "outer.unused csv"},
		{"space", "space.deep.module outer.inner outer json", "outer.unused lazy subprocess"},
		{"typed", "typed typing", "outer asyncio"},
		{"user", "lazy lazy.part", "outer"},
	} {
		c := graph.Closure([]string{test.allowed})
		for _, name := range strings.Fields(test.in) {
			if !c.Has(name) {
				t.Errorf("the closure of %s lacks %s", test.allowed, name)
			}
		}
		for _, name := range strings.Fields(test.out) {
			if c.Has(name) {
				t.Errorf("the closure of %s holds %s", test.allowed, name)
			}
		}
	}
	lib := "usr/lib/python" + report.Python + "/site-packages/"
	for allowed, want := range map[string]string{
		"math":  "outer-1.0.dist-info/RECORD",
		"space": "outer-1.0.dist-info/RECORD outer/data/table.csv space/readme.txt",
	} {
		c := graph.Closure([]string{allowed})
		shown := []string{}
		for _, name := range []string{"outer-1.0.dist-info/RECORD", "outer/data/table.csv", "space/readme.txt", "new.py", "outer/unused.py"} {
			if c.Shows(lib + name) {
				shown = append(shown, name)
			}
		}
		if got := strings.Join(shown, " "); got != want {
			t.Errorf("the closure of %s shows %s, want %s", allowed, got, want)
		}
	}
}

// checkNumerics: what numpy needs, and no more than pandas leaves to be needed.
func checkNumerics(t *testing.T, root, python string) {
	graph, err := modules.Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := graph.Closure([]string{"numpy"}).Hidden(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	lib := fmt.Sprintf("usr/lib/python%s/", python)
	for _, want := range []string{lib + "site-packages/pandas", lib + "wsgiref", lib + "sqlite3"} {
		if !slices.Contains(hidden, want) {
			t.Errorf("numpy's closure shows %s", want)
		}
	}
	for _, name := range hidden {
		if strings.Contains(name, "libblas.so") || strings.Contains(name, "site-packages/numpy/core") {
			t.Errorf("numpy's closure lacks %s", name)
		}
	}
}
