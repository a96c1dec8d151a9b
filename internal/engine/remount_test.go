package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mounted is the record of a container that was made with rules on a host without LSM programs.
func mounted(t *testing.T, rules string, change ...func(*specs.Spec)) *Record {
	t.Helper()
	p := parse(t, "fs: ["+rules+"]")
	host := testHost()
	host.Kinds["/srv/data/in"], host.Kinds["/srv/fixed"] = Directory, Directory
	host.ReadOnly = map[string]bool{"/srv/fixed": true}
	n, err := Narrow(engineSpec(change...), p, host)
	if err != nil {
		t.Fatal(err)
	}
	return &Record{Policy: p, Made: Made{Policy: p}, Confine: n.Confine, Files: n.Files, Given: n.Given, Enforced: n.Enforced}
}

// told writes a remounting in one line.
func told(m Remounting) string {
	var out []string
	for place, readonly := range m.ReadOnly {
		out = append(out, map[bool]string{false: "rw ", true: "ro "}[readonly]+place)
	}
	for _, name := range m.Unmask {
		out = append(out, "unmask "+name)
	}
	for _, mask := range m.Masks {
		if mask.New {
			out = append(out, strings.TrimSpace("mask "+mask.Path+map[bool]string{true: " in " + mask.Volume}[mask.Volume != ""]))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// What mounts hold changes both ways, and not beyond what the engine gave.
func TestReloadByMounts(t *testing.T) {
	at := func(options ...string) func(*specs.Spec) { return volume("/srv/data", "/srv/data", options...) }
	for name, tc := range map[string]struct {
		before string
		change func(*specs.Spec)
		after  string
		want   string // what is remounted, and how back; or an error
	}{
		"read":                    {`{write: /srv/data}`, at(), `{read: /srv/data}`, "ro /srv/data | rw /srv/data"},
		"write":                   {`{read: /srv/data}`, at(), `{write: /srv/data}`, "rw /srv/data | ro /srv/data"},
		"write, the engine's ro":  {`{read: /srv/data}`, at("ro"), `{write: /srv/data}`, " | "},
		"write, the host's ro":    {`{read: /srv/fixed}`, volume("/srv/fixed", "/srv/fixed"), `{write: /srv/fixed}`, " | "},
		"nothing":                 {`{read: /srv/data}`, at(), ``, "mask /srv/data in /srv/data | unmask /srv/data"},
		"all denied":              {`{read: /srv/data}`, at(), `{read: /srv/data}, {deny: /srv}`, "mask /srv, mask /srv/data in /srv/data | unmask /srv, unmask /srv/data"},
		"a part denied":           {`{read: /srv/data}`, at(), `{read: /srv/data}, {deny: /srv/data/x}`, "mask /srv/data/x in /srv/data | unmask /srv/data/x"},
		"elsewhere, on the host":  {`{read: /srv/data}, {read: /data}`, volume("/srv/data", "/data"), `{read: /srv/data}, {read: /data}, {deny: /srv/data/x}`, "mask /data/x in /data, mask /srv/data/x | unmask /data/x, unmask /srv/data/x"},
		"elsewhere, one of both":  {`{read: /srv/data}, {read: /data}`, volume("/srv/data", "/data"), `{read: /srv/data}`, "mask /data in /data | unmask /data"},
		"of the image":            {`{deny: /etc/secret}`, nil, `{deny: "/etc/other/**"}`, "mask /etc/other, unmask /etc/secret | mask /etc/secret, unmask /etc/other"},
		"masked by others":        {`{deny: /etc/own}, {deny: /etc/x}`, func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/etc/own"} }, ``, "unmask /etc/x | mask /etc/own, mask /etc/x"},
		"a file":                  {`{write: /srv/data/a.csv}`, volume("/srv/data/a.csv", "/srv/data/a.csv"), `{read: "/srv/data/*.csv"}`, "ro /srv/data/a.csv | rw /srv/data/a.csv"},
		"not this file":           {`{write: /srv/data/a.csv}`, volume("/srv/data/a.csv", "/srv/data/a.csv"), `{read: "/srv/data/*.txt"}`, "mask /srv/data/a.csv in /srv/data/a.csv | unmask /srv/data/a.csv"},
		"idle":                    {`{read: /srv/data}`, at(), `{read: /srv/data}, {read: "/opt/*.csv"}`, " | "},
		"a pattern":               {`{read: /srv/data}`, at(), `{read: "/srv/data/*.csv"}`, "fs: read /srv/data/*.csv: a pattern needs BPF-LSM"},
		"a pattern that denies":   {`{read: /srv/data}`, at(), `{read: /srv/data}, {deny: "/**/*.key"}`, "fs: deny /**/*.key: a pattern needs BPF-LSM"},
		"a part":                  {`{read: /srv/data}`, at(), `{read: /srv/data/x}`, "fs: read /srv/data/x: a part of /srv/data is held by Landlock, which a process puts on when it begins, or by BPF-LSM, which this host does not take: open all of /srv/data or nothing, or make a new container"},
		"a part to write":         {`{write: /srv/data}`, at(), `{read: /srv/data}, {write: /srv/data/x}`, "fs: write /srv/data/x: a part of"},
		"one part less":           {`{read: /srv/data/x}, {read: /srv/data/y}`, at(), `{read: /srv/data/y}`, "mask /srv/data/x in /srv/data | unmask /srv/data/x"},
		"no part":                 {`{read: /srv/data/x}`, at(), ``, "mask /srv/data in /srv/data | unmask /srv/data"},
		"no part to write":        {`{write: /srv/data/x}, {read: /srv/data/y}`, at(), `{read: /srv/data/x}, {read: /srv/data/y}`, "ro /srv/data | rw /srv/data"},
		"one part to write":       {`{write: /srv/data/x}, {write: /srv/data/y}`, at(), `{read: /srv/data/x}, {write: /srv/data/y}`, "fs: read /srv/data/x: it cannot change in a running container: its Landlock domain lets it write in /srv/data/x"},
		"a part of a part":        {`{read: /srv/data/x}`, at(), `{read: /srv/data/x/in}`, "fs: read /srv/data/x/in: it cannot change in a running container: its Landlock domain opens all of /srv/data/x"},
		"another part":            {`{read: /srv/data/x}`, at(), `{read: /srv/data/y}`, "read /srv/data/y: it cannot change in a running container: its Landlock domain opens what the policy that it was made with allows: allow no more, or make a new container"},
		"more than parts":         {`{read: /srv/data/x}`, at(), `{read: /srv/data}`, "its Landlock domain"},
		"denied, beside Landlock": {`{read: /srv/data/x}`, at(), `{read: /srv/data/x}, {deny: /srv/data/x/key}, {deny: /etc/x}`, "mask /etc/x, mask /srv/data/x/key in /srv/data | unmask /etc/x, unmask /srv/data/x/key"},
		"one in another": {`{read: /srv/data}`, func(s *specs.Spec) { at()(s); volume("/srv/data/in", "/srv/data/in")(s) }, ``,
			"fs: it cannot change in a running container: no rule opens the mount at /srv/data, and with that at /srv/data/in inside nobody can tell whether it is in use: keep a rule for it"},
		"the root": {`{read: /srv/data}`, at(), `{read: /srv/data}, {deny: "/**"}`, "it would hide the root"},
	} {
		if tc.change == nil {
			tc.change = func(*specs.Spec) {}
		}
		r := mounted(t, tc.before, tc.change)
		next, err := r.Reload(parse(t, "fs: ["+tc.after+"]"), "test", Holds{})
		got := fmt.Sprint(err)
		if err == nil {
			got = told(r.Remounting(next))
			back, err := next.Reload(r.Policy, "test", Holds{})
			if err != nil {
				t.Errorf("%s, and back: %v", name, err)
				continue
			}
			got += " | " + told(next.Remounting(back))
			for _, rule := range next.Policy.FS() {
				if by(next)[text(rule)] == "" {
					t.Errorf("%s: nothing is said to hold %s", name, text(rule))
				}
			}
		}
		if got != tc.want && (err == nil || !strings.Contains(got, tc.want)) {
			t.Errorf("%s: %s, not %s", name, got, tc.want)
		}
	}
}

// What is hidden in a directory is masked before the directory, or it would be seen when that
// is shown again.
func TestMasksAreInOrder(t *testing.T) {
	r := mounted(t, `{read: /srv/data}, {deny: /srv/data/run}, {deny: /etc/x}`, volume("/srv/data", "/srv/data"))
	n, err := Narrow(engineSpec(volume("/srv/data", "/srv/data")), r.Policy, testHost())
	if err != nil {
		t.Fatal(err)
	}
	all := n.Spec.Linux.MaskedPaths
	door, dir := slices.Index(all, "/srv/data/run/data.sock"), slices.Index(all, "/srv/data/run")
	if door < 0 || door > dir || all[0] != "/proc/own" {
		t.Errorf("%q", all)
	}
	if fmt.Sprint(r.Files.Masks) != "[/srv/data/run /etc/x]" {
		t.Errorf("%q may be taken away", r.Files.Masks)
	}
}

// What somebody has open there would stay his.
func TestHides(t *testing.T) {
	r := mounted(t, `{write: /srv/data}, {deny: /srv/data/old}`, volume("/srv/data", "/srv/data"))
	next, err := r.Reload(parse(t, `fs: [{read: /srv/data}, {deny: /srv/data/old}, {deny: /srv/data/x}, {deny: /etc/key}]`), "test", Holds{})
	if err != nil {
		t.Fatal(err)
	}
	m := r.Remounting(next)
	for path, want := range map[string][2]bool{
		"/srv/data": {false, true}, "/srv/data/y": {false, true}, "/srv/data/x": {true, true}, "/srv/data/x/y": {true, true},
		"/srv/data/xy": {false, true}, "/etc/key": {true, true}, "/etc/keys": {}, "/tmp/x": {},
	} {
		if got := [2]bool{m.Hides(path, Access{Read: true}), m.Hides(path, Access{Write: true})}; got != want {
			t.Errorf("%s, read and written: %v", path, got)
		}
	}
}
