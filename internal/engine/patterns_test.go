package engine

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// lsmHost is a host that takes LSM programs.
func lsmHost() Host {
	h := testHost()
	h.Files = func() error { return nil }
	return h
}

func TestPatternsAreForPrograms(t *testing.T) {
	for name, tc := range map[string]struct {
		document string
		change   func(*specs.Spec)
		options  string   // of the last mount
		rules    []string // held by LSM programs
		own      int      // rules for the image's files beside the two
	}{
		"read":             {`{read: "/srv/data/*.csv"}`, volume("/srv/data", "/srv/data", "rw"), "ro", []string{"fs: read /srv/data/*.csv"}, 0},
		"write":            {`{write: "/srv/data/*.csv"}`, volume("/srv/data", "/srv/data", "rw"), "", []string{"fs: write /srv/data/*.csv"}, 0},
		"read and a part":  {`{read: "/srv/data/*.csv"}, {write: /srv/data/out}`, volume("/srv/data", "/srv/data", "rw"), "", []string{"fs: read /srv/data/*.csv", "fs: write /srv/data/out"}, 0},
		"from above":       {`{read: "/srv/*/x"}`, volume("/srv/data", "/srv/data"), "ro", []string{"fs: read /srv/*/x"}, 0},
		"denied":           {`{read: /srv/data}, {deny: "/srv/data/**/*.key"}`, volume("/srv/data", "/srv/data"), "ro", []string{"fs: deny /srv/data/**/*.key"}, 1},
		"names, elsewhere": {`{read: /srv/data}, {read: /data}, {deny: "/**/*.key"}`, volume("/srv/data", "/data"), "ro", []string{"fs: deny /**/*.key"}, 1},
		"of the image":     {`{deny: "/etc/*.key"}`, func(*specs.Spec) {}, "rw", []string{"fs: deny /etc/*.key"}, 1},
	} {
		n, err := Narrow(engineSpec(tc.change), parse(t, "fs: ["+tc.document+"]"), lsmHost())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		options := n.Spec.Mounts[len(n.Spec.Mounts)-1].Options
		if tc.options != "" && !slices.Contains(options, tc.options) || tc.options == "" && slices.Contains(options, "ro") || tc.options != "rw" && !slices.Contains(options, "noexec") {
			t.Errorf("%s: %q", name, options)
		}
		var rules []string
		for _, e := range n.Enforced {
			if e.By == lsm && strings.HasPrefix(e.Rule, "fs:") {
				rules = append(rules, e.Rule)
			}
		}
		if !slices.Equal(rules, tc.rules) || !n.Files.Needed || len((&Record{Files: n.Files}).OwnFiles(parse(t, "fs: ["+tc.document+"]"))) != 2+tc.own || n.Confine.Domain != nil {
			t.Errorf("%s: %q, %+v, %v", name, rules, n.Files, n.Confine.Domain)
		}
	}
}

func TestPatternsThatNobodyCanHold(t *testing.T) {
	linked := lsmHost()
	linked.List = func(string) ([]string, error) { return nil, errors.New("a link") }
	for name, tc := range map[string]struct {
		host     Host
		document string
		change   func(*specs.Spec)
		want     string
	}{
		"no programs":        {testHost(), `{read: "/srv/data/*.csv"}`, volume("/srv/data", "/srv/data"), "no BPF-LSM"},
		"another place":      {lsmHost(), `{read: "/srv/data/*.csv"}`, volume("/srv/data", "/data"), "mount it at /srv/data"},
		"its other place":    {lsmHost(), `{read: "/data/*.csv"}`, volume("/srv/data", "/data"), "mount it at /srv/data"},
		"denied, elsewhere":  {lsmHost(), `{read: /srv/data}, {read: /data}, {deny: "/srv/**/x/*.key"}`, volume("/srv/data", "/data"), "mount it at /srv/data"},
		"the volume itself":  {lsmHost(), `{read: /srv/data}, {deny: "/srv/d*"}`, volume("/srv/data", "/srv/data"), "denied by fs: deny /srv/d*"},
		"a link in the way":  {linked, `{read: "/srv/data/*.csv"}`, volume("/srv/data", "/srv/data"), "a link"},
		"no pattern is near": {lsmHost(), `{read: "/srv/other/*.csv"}`, volume("/srv/data", "/srv/data"), "no fs rule allows"},
	} {
		if _, err := Narrow(engineSpec(tc.change), parse(t, "fs: ["+tc.document+"]"), tc.host); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that is mounted by itself needs no programs; neither does a pattern that opens nothing.
func TestPatternsWithoutPrograms(t *testing.T) {
	n := narrow(t, engineSpec(volume("/srv/data/a.csv", "/srv/data/a.csv", "rw")), parse(t, `fs: [{read: "/srv/data/*.csv"}, {write: "/more/*"}]`))
	if m := mountAt(t, n.Spec, "/srv/data/a.csv"); !slices.Contains(m.Options, "ro") || n.Files.Needed {
		t.Errorf("%v, %+v", m.Options, n.Files)
	}
	for rule, by := range map[string]string{"fs: read /srv/data/*.csv": "mount options of /srv/data/a.csv", "fs: write /more/*": "nobody has to: no volume shows what it opens"} {
		if !slices.Contains(n.Enforced, Enforcement{Rule: rule, By: by}) {
			t.Errorf("%s: %v", rule, n.Enforced)
		}
	}
	n = narrow(t, engineSpec(volume("/srv/data/a.csv", "/data/a.csv", "rw")), parse(t, `fs: [{write: "/srv/data/*.csv"}, {write: /data}]`))
	if m := mountAt(t, n.Spec, "/data/a.csv"); slices.Contains(m.Options, "ro") {
		t.Errorf("%v", m.Options)
	}
}

func TestPatternOfAName(t *testing.T) {
	for text, want := range map[string]bool{"/**/*.key": true, "/**/a/*.key": false, "/*/x": false, "/**/**": true} {
		if (pattern{policy.FSRule{Mode: policy.Deny, Pattern: text}}).anywhere() != want {
			t.Error(text)
		}
	}
}
