package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

func TestConfig(t *testing.T) {
	const good = `
policy = "batch"
annotations = ["io.psi.policy", "example.com/policy"]
engine_mounts = ["/var/lib/kubelet/pods"]

[class.psi-strict]
policy = "strict"
mandatory = true
annotations = []

[class."psi-open"]
policy = ""
`
	common := Rules{Policy: "batch", Annotations: []string{"io.psi.policy", "example.com/policy"}, EngineMounts: []string{"/var/lib/kubelet/pods"}}
	strict, open := common, common
	strict.Policy, strict.Mandatory, strict.Annotations = "strict", true, []string{}
	open.Policy = ""
	for class, want := range map[string]Rules{"psi-runtime": common, "psi-strict": strict, "psi-open": open} {
		got, err := parseConfig(good, "f", class)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", class, got, err)
		}
	}
	for text, want := range map[string]string{
		"polcy = 'x'": `f:1:1: "polcy" is not a key`,
		"policy = 'a'\n[class.x]\nmandatry = true": `f:3:1: "class.x.mandatry" is not a key`,
		"policy = 3":                      "f:1:10: ",
		"policy = 'a'\npolicy = 'b'":      "already defined",
		"[class.x]\n[class.x]":            "already exists",
		"mandatory = true":                "without a policy",
		"[class.x]\nmandatory = true":     `class "x": mandatory`,
		"policy = 'a'\nmandatory = 'yes'": "f:2:13: ",
		"annotations = ['']":              "not the name",
		"engine_mounts = ['data']":        "absolute path",
		"engine_mounts = ['/']":           "absolute path",
		"engine_mounts = ['/a/../b']":     "absolute path",
		"[class.'a/b']":                   "without /",
		"policy":                          "f:1:",
		"\x00":                            "f:1:1",
	} {
		if _, err := parseConfig(text, "f", "other"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "runtime.toml")
	if _, err := ReadConfig(file, "x"); err == nil {
		t.Error("a file that was named and is not there")
	}
	if err := os.WriteFile(file, []byte("policy = 'a'"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadConfig(file, "x"); err != nil || r.Policy != "a" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(file, "x"); err == nil || !strings.Contains(err.Error(), "only its owner may write") {
		t.Errorf("a file that all may write: %v", err)
	}
	if _, err := ReadConfig(dir, "x"); err == nil {
		t.Error("a directory")
	}
}

func lookup(t *testing.T) Lookup {
	return func(name string) (policy.Policy, error) {
		documents := map[string]string{"small": "mem: 64MiB", "smaller": "mem: 32MiB", "net": `tcp: ["127.0.0.1:80"]`, "degraded": "allow_degraded: true", "large": "mem: 4GiB"}
		text, ok := documents[name]
		if !ok {
			return policy.Policy{}, fmt.Errorf("no policy %q", name)
		}
		return parse(t, text), nil
	}
}

func TestSettle(t *testing.T) {
	mandatory := Rules{Policy: "small", Mandatory: true}
	ids := map[string]string{IDsKey: "auto"}
	with := func(value string, more ...string) map[string]string {
		out := map[string]string{PolicyKey: value}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	for name, tc := range map[string]struct {
		annotations map[string]string
		rules       Rules
		flag        string
		mem         int64 // MiB; 0 is none
		err         string
	}{
		"nothing":                      {},
		"default":                      {rules: Rules{Policy: "small"}, mem: 64},
		"annotation over the default":  {annotations: with("large"), rules: Rules{Policy: "small"}, mem: 4096},
		"document":                     {annotations: with("mem: 100MiB"), mem: 100},
		"json":                         {annotations: with(`{"mem":"100MiB"}`), mem: 100},
		"name":                         {annotations: with("small"), mem: 64},
		"unknown name":                 {annotations: with("nope"), err: `"nope"`},
		"empty":                        {annotations: with(""), err: PolicyKey},
		"a path":                       {annotations: with("../../tmp/x"), err: "no policy"},
		"garbage":                      {annotations: with("\x00\xff{"), err: PolicyKey},
		"a list":                       {annotations: with("[1, 2]"), err: PolicyKey},
		"huge":                         {annotations: with("{mem: 64MiB" + strings.Repeat(" ", 2<<20) + "}"), err: PolicyKey},
		"deep":                         {annotations: with(strings.Repeat("{a: ", 100000)), err: PolicyKey},
		"keys twice":                   {annotations: with(`{"mem": "64MiB", "mem": "4GiB"}`), err: PolicyKey},
		"several sandboxes":            {annotations: with("version: 1\nsandboxes: {a: {}, b: {}}"), err: PolicyKey},
		"flag":                         {flag: "small", mem: 64},
		"unknown flag":                 {flag: "nope", err: "--policy"},
		"narrower than the flag":       {flag: "small", annotations: with("smaller"), mem: 32},
		"wider than the flag":          {flag: "small", annotations: with("large"), err: "mem: more"},
		"mandatory":                    {rules: mandatory, mem: 64},
		"narrower than mandatory":      {rules: mandatory, annotations: with("smaller"), mem: 32},
		"wider than mandatory":         {rules: mandatory, annotations: with("large"), err: "the mandatory policy small does not"},
		"more network than mandatory":  {rules: mandatory, annotations: with(`{mem: 1GiB, tcp: ["1.2.3.4:1"]}`), err: "permits what"},
		"network beside mandatory":     {rules: mandatory, annotations: with("{mem: 64MiB, tcp: ['1.2.3.4:1']}"), err: "tcp"},
		"degraded beside mandatory":    {rules: mandatory, annotations: with("{mem: 64MiB, allow_degraded: true}"), err: "allow_degraded"},
		"flag wider than mandatory":    {rules: mandatory, flag: "large", err: "--policy large permits"},
		"between flag and mandatory":   {rules: Rules{Policy: "large", Mandatory: true}, flag: "small", annotations: with("mem: 100MiB"), err: "--policy small does not"},
		"does not count":               {annotations: with("small"), rules: Rules{Annotations: []string{"x"}}, err: "does not count"},
		"another that counts":          {annotations: map[string]string{"x": "small"}, rules: Rules{Annotations: []string{"x"}}, mem: 64},
		"two that differ":              {annotations: with("small", "x", "large"), rules: Rules{Annotations: []string{PolicyKey, "x"}}, err: "different policies"},
		"two that agree":               {annotations: with("small", "x", "mem: 64MiB"), rules: Rules{Annotations: []string{PolicyKey, "x"}}, mem: 64},
		"own bundle":                   {annotations: with("small", IDsKey, "auto"), mem: 64},
		"own bundle without a policy":  {annotations: ids, rules: Rules{Policy: "small"}, err: "carry its policy"},
		"own bundle, nothing required": {annotations: ids},
		"own bundle under mandatory":   {annotations: with("small", IDsKey, "auto"), rules: mandatory, err: IDsKey + " does not count"},
		"own bundle under the flag":    {annotations: with("small", IDsKey, "auto"), flag: "small", err: IDsKey + " does not count"},
		"odd ids":                      {annotations: with("small", IDsKey, "yes"), err: IDsKey},
		"mandatory that is missing":    {rules: Rules{Policy: "nope", Mandatory: true}, err: "configuration"},
	} {
		got, err := Settle(&specs.Spec{Annotations: tc.annotations}, tc.rules, tc.flag, lookup(t))
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) || len(err.Error()) > 1000 {
				t.Errorf("%s: %.2000v", name, err)
			}
		case err != nil || (got == nil) != (tc.mem == 0) || got != nil && got.Policy.Limits().Mem != tc.mem<<20:
			t.Errorf("%s: %+v, %v", name, got, err)
		case got != nil && got.Own != (tc.annotations[IDsKey] == "auto"):
			t.Errorf("%s: own is %v", name, got.Own)
		}
	}
}

// What only psi-runtime writes is not believed of a bundle, and survives the state.
func TestRecord(t *testing.T) {
	spec := &specs.Spec{Annotations: map[string]string{"a": "b", enforcedKey: `[{"rule":"all","by":"magic"}]`, confineKey: "{}", filesKey: "{}"}}
	Forget(spec)
	if len(spec.Annotations) != 1 {
		t.Errorf("%v", spec.Annotations)
	}
	if r, err := ReadRecord(spec.Annotations); r != nil || err != nil {
		t.Errorf("%v, %v", r, err)
	}
	n := narrow(t, engineSpec(volume("/srv/data", "/srv/data")), parse(t, "{seccomp: python, fs: [{read: /srv/data/x}]}"))
	made := Made{Policy: parse(t, "{}"), Bounds: []Bound{{"the bound", parse(t, "mem: 1GiB")}}}
	in := Record{Made: made, Policy: parse(t, "seccomp: python"), Given: n.Given, Confine: n.Confine, Files: n.Files, Enforced: n.Enforced}
	if err := in.Write(spec); err != nil {
		t.Fatal(err)
	}
	out, err := ReadRecord(spec.Annotations)
	if err != nil || !reflect.DeepEqual(out.Confine, in.Confine) || !reflect.DeepEqual(out.Enforced, in.Enforced) || !reflect.DeepEqual(out.Files, in.Files) || len(in.Files.Volumes) != 1 || !reflect.DeepEqual(out.Given, in.Given) || out.Made.Policy.Digest() != made.Policy.Digest() || len(out.Made.Bounds) != 1 || out.Policy.Digest() != in.Policy.Digest() {
		t.Errorf("%+v, %v", out, err)
	}
	if v := Visible(spec.Annotations); len(v) != 2 {
		t.Errorf("%v", v)
	}
	for _, key := range []string{PolicyKey, enforcedKey, confineKey, filesKey, madeKey, givenKey} {
		bad := map[string]string{PolicyKey: "{}"}
		bad[key] = "{"
		if _, err := ReadRecord(bad); err == nil {
			t.Errorf("%s: no error", key)
		}
	}
	spec = &specs.Spec{}
	if err := in.Write(spec); err != nil || len(spec.Annotations) != 6 {
		t.Errorf("%v, %v", spec.Annotations, err)
	}
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"root/usr", "root/srv/a", "bundle"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "root/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "hosts")); err != nil {
		t.Fatal(err)
	}
	s := engineSpec(volume(filepath.Join(dir, "hosts"), "/etc/hosts"), volume("/dev/null", "/x"), volume("/no/such", "/y"), func(s *specs.Spec) {
		s.Root.Path = "../root"
		s.Linux.Namespaces[3].Path = "/proc/self/ns/net"
	})
	h, err := Look(s, filepath.Join(dir, "bundle"), Rules{})
	if err != nil {
		t.Fatal(err)
	}
	if !h.OwnNamespaces["/proc/self/ns/net"] || h.Kinds["/dev/null"] != Other || h.Kinds["/no/such"] != Absent || h.Kinds["/etc/passwd"] != File {
		t.Errorf("%+v", h)
	}
	// A link called hosts is what it leads to.
	if s.Mounts[4].Source != "/etc/passwd" {
		t.Errorf("%+v", s.Mounts[4])
	}
	for d, want := range map[string]string{"/": "[srv usr]", "/srv": "[a]", "/srv/new/x": "[]"} {
		names, err := h.List(d)
		slices.Sort(names)
		if err != nil || fmt.Sprint(names) != want {
			t.Errorf("%s: %v, %v", d, names, err)
		}
	}
	for _, d := range []string{"/link", "/link/apt"} {
		if _, err := h.List(d); err == nil || !strings.Contains(err.Error(), "link") {
			t.Errorf("%s: %v", d, err)
		}
	}
	s.Linux.Namespaces[3].Path = "/no/such/ns"
	if _, err := Look(s, dir, Rules{}); err == nil {
		t.Error("a namespace that is not there")
	}
}
