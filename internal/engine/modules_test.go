package engine

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/modules"
)

// testModules are those of a root with a few; that of big.part is missing.
func testModules() (*Modules, error) {
	graph := modules.Graph{Library: "lib/py", CacheTag: "cp", Program: "bin/py", Base: []string{"os"}, Modules: map[string]modules.Module{
		"os": {File: "lib/py/os.py"}, "math": {File: "lib/py/math.so"}, "json": {File: "lib/py/json/__init__.py"},
		"sub": {File: "lib/py/sub.py", Imports: []string{"json"}}, "csv": {File: "lib/py/csv/__init__.py"},
		"big": {Imports: []string{"big.part"}}, "big.part": {File: "lib/py/big/part.py"},
	}}
	data, err := graph.Encode()
	if err != nil {
		return nil, err
	}
	root := fstest.MapFS{modules.File: {Data: data}}
	for _, name := range []string{"bin/py", "lib/py/os.py", "lib/py/math.so", "lib/py/json/__init__.py", "lib/py/sub.py", "lib/py/csv/__init__.py", "lib/py/csv/data"} {
		root[name] = &fstest.MapFile{}
	}
	return readModules(root)
}

// What a container hides is what its list and its rules say, whichever of them came when.
func TestReloadImports(t *testing.T) {
	for _, programs := range []bool{false, true} {
		host := testHost()
		if programs {
			host = lsmHost()
		}
		before := parse(t, "{imports: [math], fs: [{deny: /lib/py/sub.py}, {deny: /lib/py/os.py}]}")
		spec := engineSpec(func(s *specs.Spec) { s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/lib/py/csv") }) // of the engine's own
		n, err := Narrow(spec, before, host)
		if err != nil {
			t.Fatal(err)
		}
		r := &Record{Policy: before, Made: Made{Policy: before}, Files: n.Files, Given: n.Given, Enforced: n.Enforced}
		const rules = ", fs: [{deny: /lib/py/sub.py}, {deny: /lib/py/os.py}]}"
		for _, step := range []struct{ policy, hidden, unmask, masks string }{
			{"{imports: [math]" + rules, "", "", "json os.py sub.py"},
			{"{imports: [json]" + rules, "csv math.so", "json", "csv math.so os.py sub.py"},
			{"{imports: [json, sub]" + rules, "", "", "csv math.so os.py sub.py"}, // a rule denies what the list allows
			{"{imports: [math]" + rules, "json sub.py", "math.so", "csv json os.py sub.py"},
			{"{imports: [math, no]" + rules, "", "", "csv json os.py sub.py"},
			{"{mem: 1GiB" + rules, "", "csv json", "os.py sub.py"},
		} {
			next, err := r.Reload(parse(t, step.policy), "test", Holds{Files: programs, Modules: testModules})
			if err != nil {
				t.Fatalf("%s: %v", step.policy, err)
			}
			got := r.Remounting(next)
			var masks []string
			for _, m := range got.Masks {
				masks = append(masks, m.Path)
			}
			for what, lists := range map[string][2]string{"hidden": {names(got.Hidden), step.hidden}, "unmask": {names(got.Unmask), step.unmask}, "masks": {names(masks), step.masks}} {
				if lists[0] != lists[1] {
					t.Errorf("programs %v, %s: %s %q, want %q", programs, step.policy, what, lists[0], lists[1])
				}
			}
			held := by(next)
			if imports, limited := next.Policy.Imports(); limited != strings.HasPrefix(held[importsRule(imports)], "masked files of the image: ") {
				t.Errorf("%s: %v", step.policy, held)
			}
			r = next
		}
		if _, err := r.Reload(before, "test", Holds{Files: programs, Modules: testModules}); err == nil || !strings.Contains(err.Error(), "what may import everything has done so") {
			t.Errorf("limited again: %v", err)
		}
	}
}

func names(paths []string) string {
	var out []string
	for _, p := range paths {
		out = append(out, strings.TrimPrefix(p, "/lib/py/"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestReloadImportsOfAnyImage(t *testing.T) {
	r := made(t, "{imports: [math], allow_degraded: true}")
	none := func() (*Modules, error) { return nil, modules.ErrNoGraph }
	if _, err := r.Reload(parse(t, "{imports: [json], allow_degraded: true}"), "test", Holds{Modules: none}); err == nil || !strings.Contains(err.Error(), "only an image that `psi-runtime rootfs` has made tells which files its modules are") {
		t.Errorf("%v", err)
	}
	if _, err := r.Reload(parse(t, "{imports: [math], allow_degraded: true, mem: 1GiB}"), "test", Holds{Modules: none}); err != nil {
		t.Error(err)
	}
	volumes := made(t, "{imports: [math], fs: [{read: /srv/data}, {read: /lib/py/extra}]}", volume("/srv/data", "/lib/py/extra"))
	if _, err := volumes.Reload(parse(t, "{imports: [json], fs: [{read: /srv/data}, {read: /lib/py/extra}]}"), "test", Holds{Files: true, Modules: testModules}); err == nil || !strings.Contains(err.Error(), "/lib/py/extra is mounted among its modules") {
		t.Errorf("%v", err)
	}
}
