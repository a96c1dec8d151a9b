package modules

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// small is a root with a few modules of every kind.
func small() *Graph {
	return &Graph{
		Library: "lib/py", CacheTag: "cp", Program: "bin/py", Base: []string{"os", "codecs"},
		Modules: map[string]Module{
			"os":          {File: "lib/py/os.py", Later: []string{"subprocess"}},
			"codecs":      {File: "lib/py/codecs.py"},
			"sys":         {},
			"subprocess":  {File: "lib/py/subprocess.py", Imports: []string{"_posixsubprocess", "os"}},
			"math":        {File: "lib/py/lib-dynload/math.so"},
			"a":           {File: "lib/py/a/__init__.py", Imports: []string{"os"}},
			"a.b":         {File: "lib/py/a/b.py", Imports: []string{"sys"}, Later: []string{"c"}},
			"a.c":         {File: "lib/py/a/c.so", Open: true},
			"c":           {File: "lib/py/c.py", Later: []string{"d"}},
			"d":           {File: "lib/py/d.py", Imports: []string{"a.b"}},
			"_ctypes":     {File: "lib/py/lib-dynload/_ctypes.so"},
			"space.m":     {File: "lib/py/site-packages/space/m.py", Imports: []string{"a.b"}},
			"uses_ctypes": {File: "lib/py/uses_ctypes.py", Later: []string{"_ctypes", "math"}},
			"needs_it":    {File: "lib/py/needs_it.py", Imports: []string{"uses_ctypes"}},

			"_posixsubprocess": {},
		},
		Needs: map[string][]string{
			"bin/py":                        {"lib64/ld.so.2", "lib/libc.so.6"},
			"lib/py/lib-dynload/math.so":    {"lib/libm.so.6"},
			"lib/libm.so.6":                 {"lib/libc.so.6", "lib/libdeep.so"},
			"lib/py/lib-dynload/_ctypes.so": {"lib/libffi.so.8"},
		},
	}
}

// names lists what is in a closure beside the base.
func names(g *Graph, c *Closure) string {
	var in []string
	for name := range g.Modules {
		if c.Has(name) && !slices.Contains(g.Base, name) {
			in = append(in, name)
		}
	}
	slices.Sort(in)
	return strings.Join(in, " ")
}

func TestClosure(t *testing.T) {
	g := small()
	for allowed, want := range map[string]string{
		"":                 "",
		"math":             "math",
		"no_such":          "",
		"mat":              "",
		"os":               "_posixsubprocess subprocess", // its own functions may
		"a":                "a a.b a.c c sys",             // with all below it
		"a.b":              "a a.b c sys",                 // and with the packages around it
		"space":            "a a.b c space.m sys",         // one step of what comes later, and os.popen is not for it
		"c":                "a a.b c d sys",
		"uses_ctypes":      "_ctypes math uses_ctypes",
		"needs_it":         "math needs_it uses_ctypes", // ctypes by name only
		"needs_it _ctypes": "_ctypes math needs_it uses_ctypes",
	} {
		if got := names(g, g.Closure(strings.Fields(allowed))); got != want {
			t.Errorf("closure of %q: %s, want %s", allowed, got, want)
		}
	}
}

// root is a tree around the small graph.
func root() fstest.MapFS {
	files := fstest.MapFS{}
	for _, name := range strings.Fields(`bin/py etc/passwd lib64/ld.so.2 lib/libc.so.6 lib/libm.so.6 lib/libdeep.so lib/libffi.so.8
		lib/py/os.py lib/py/__pycache__/os.cp.pyc lib/py/codecs.py lib/py/subprocess.py lib/py/__pycache__/subprocess.cp.pyc
		lib/py/lib-dynload/math.so lib/py/lib-dynload/_ctypes.so lib/py/a/__init__.py lib/py/a/b.py lib/py/a/data.txt
		lib/py/a/sub/more.txt lib/py/a/c.so lib/py/c.py lib/py/d.py lib/py/new.py lib/py/LICENSE lib/py/site-packages/space/m.py
		lib/py/site-packages/a.libs/liba.so.1 lib/py/site-packages/a-1.dist-info/RECORD`) {
		files[name] = &fstest.MapFile{}
	}
	files["tmp"] = &fstest.MapFile{Mode: fs.ModeDir | 0o777}
	return files
}

func TestHidden(t *testing.T) {
	g := small()
	for allowed, want := range map[string]string{
		"math": `lib/libffi.so.8 lib/py/__pycache__/subprocess.cp.pyc lib/py/a lib/py/c.py lib/py/d.py
			lib/py/lib-dynload/_ctypes.so lib/py/new.py lib/py/site-packages/a.libs lib/py/site-packages/space lib/py/subprocess.py`,
		"space": `lib/libdeep.so lib/libffi.so.8 lib/libm.so.6 lib/py/__pycache__/subprocess.cp.pyc lib/py/a/c.so lib/py/d.py
			lib/py/lib-dynload lib/py/new.py lib/py/site-packages/a.libs lib/py/subprocess.py`,
		"_ctypes": `lib/py/__pycache__/subprocess.cp.pyc lib/py/a lib/py/c.py lib/py/d.py lib/py/lib-dynload/math.so lib/py/new.py
			lib/py/site-packages/space lib/py/subprocess.py`,
	} {
		hidden, err := g.Closure(strings.Fields(allowed)).Hidden(root())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(hidden, " "); got != strings.Join(strings.Fields(want), " ") {
			t.Errorf("%s hides %s", allowed, got)
		}
	}
}

func TestRead(t *testing.T) {
	if _, err := Read(fstest.MapFS{}); !errors.Is(err, ErrNoGraph) {
		t.Errorf("without a graph: %v", err)
	}
	for _, bad := range []string{"", "{", "[]", "{}", `{"library": "lib"}`} {
		if _, err := Read(fstest.MapFS{File: {Data: []byte(bad)}}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	data, err := small().Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Read(fstest.MapFS{File: {Data: data}})
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := again.Encode(); err != nil || string(twice) != string(data) {
		t.Errorf("read and encoded again it differs: %v", err)
	}
}

// TestWider: a longer list never shows less.
func TestWider(t *testing.T) {
	g := small()
	var all []string
	for name := range g.Modules {
		all = append(all, name)
	}
	slices.Sort(all)
	for _, one := range all {
		narrow := g.Closure([]string{one})
		for _, two := range all {
			wide := g.Closure([]string{one, two})
			for name := range root() {
				if narrow.Shows(name) && !wide.Shows(name) {
					t.Errorf("%s is shown for %s and not with %s", name, one, two)
				}
			}
		}
	}
}
