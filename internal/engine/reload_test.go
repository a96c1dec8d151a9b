package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// made is the record of a container that was made with a policy.
func made(t *testing.T, document string, change ...func(*specs.Spec)) *Record {
	t.Helper()
	p := parse(t, document)
	n, err := Narrow(engineSpec(change...), p, lsmHost())
	if err != nil {
		t.Fatal(err)
	}
	return &Record{Policy: p, Made: Made{Policy: p}, Confine: n.Confine, Files: n.Files, Given: n.Given, Enforced: n.Enforced}
}

// limited is an engine's container with limits of its own.
func limited(s *specs.Spec) {
	memory, reservation, quota, period, pids := int64(100<<20), int64(90<<20), int64(100000), uint64(200000), int64(50)
	s.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory, Reservation: &reservation}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids: &specs.LinuxPids{Limit: &pids},
	}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1000, Soft: 500}}
}

func by(r *Record) map[string]string {
	out := map[string]string{}
	for _, e := range r.Enforced {
		out[e.Rule] = e.By
	}
	return out
}

// A wider policy gives back what the engine gave, and no more, whatever was between; an
// update counts as what the engine gives.
func TestReloadGivesBack(t *testing.T) {
	r := made(t, "{mem: 64MiB, cpu: 0.25, pids: 10, open_files: 100}", limited)
	check := func(mem, reservation int64, share float64, pids int64, hard, soft uint64) {
		t.Helper()
		l := r.Policy.Limits()
		got, open := r.Given.Resources(l), r.Given.OpenFiles(l)
		if *got.Memory.Limit != mem || *got.Memory.Swap != mem || *got.Memory.Reservation != reservation || float64(*got.CPU.Quota)/float64(*got.CPU.Period) != share || *got.Pids.Limit != pids || open.Hard != hard || open.Soft != soft {
			t.Errorf("mem %d swap %d reservation %d, cpu %d/%d, pids %d, open files %d:%d", *got.Memory.Limit, *got.Memory.Swap, *got.Memory.Reservation, *got.CPU.Quota, *got.CPU.Period, *got.Pids.Limit, open.Soft, open.Hard)
		}
	}
	reload := func(document string) {
		t.Helper()
		next, err := r.Reload(parse(t, document), "test", Holds{})
		if err != nil {
			t.Fatal(err)
		}
		r = next
	}
	check(64<<20, 64<<20, 0.25, 10, 100, 100)
	reload("{mem: 8MiB, cpu: 0.01, pids: 1, open_files: 20}")
	check(8<<20, 8<<20, 0.01, 1, 20, 20)
	reload("{mem: 1GiB, cpu: 4, pids: 1000, open_files: 4000}")
	check(100<<20, 90<<20, 0.5, 50, 1000, 500)
	if held := by(r); held["mem: 1GiB"] != "memory cgroup: 100MiB" || held["pids: 1000"] != "pids cgroup: 50" || held["cpu: 4"] != "cpu cgroup: 0.5" || held["open_files: 4000"] != "RLIMIT_NOFILE: 1000" || held["privileges"] == "" || len(held) != len(r.Enforced) {
		t.Errorf("%v", held)
	}
	ask := func(r *Record, asked specs.LinuxResources) {
		t.Helper()
		if _, err := r.Update(&asked); err != nil {
			t.Fatal(err)
		}
	}
	memory, period, quota := int64(80<<20), uint64(400000), int64(-1)
	ask(r, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Period: &period}})
	check(80<<20, 80<<20, 0.25, 50, 1000, 500)
	ask(r, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}, Unified: map[string]string{"pids.max": "max", "memory.max": "max"}})
	reload("{mem: 128MiB, cpu: 3, pids: 60, open_files: 4000}")
	check(128<<20, 90<<20, 3, 60, 1000, 500)
}

// Only a period is asked for: the quota that the engine gave before stays.
func TestUpdateOfThePeriod(t *testing.T) {
	r, period := made(t, "cpu: 1", limited), uint64(400000)
	got, err := r.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Period: &period}})
	if err != nil || *got.CPU.Quota != 100000 || *got.CPU.Period != 400000 {
		t.Errorf("%+v, %v", got.CPU, err)
	}
}

// Every key that cannot change is named, all of them at once.
func TestReloadOfWhatIsFixed(t *testing.T) {
	r := made(t, "{}")
	for key, document := range map[string]string{
		"allow_degraded": "allow_degraded: true", "read_only": "read_only: true", "tmp": "tmp: 1MiB", "seccomp": "seccomp: python",
		"imports": "imports: [math]", "message": "message: 1MiB", "output": "output: 1MiB", "preload": "preload: [math]", "isolation": "isolation: fresh",
	} {
		_, err := r.Reload(parse(t, document), "test", Holds{Files: true})
		if err == nil || !strings.HasPrefix(err.Error(), key+" cannot change in a running container, from ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", key, err)
		}
	}
	_, err := r.Reload(parse(t, "{imports: [math], tmp: 1MiB, mem: 1GiB}"), "test", Holds{})
	if err == nil || !strings.Contains(err.Error(), `from nothing to ["math"]`) || !strings.Contains(err.Error(), "tmp cannot change in a running container, from 67108864 to 1048576") || strings.Contains(err.Error(), "mem") {
		t.Errorf("%v", err)
	}
	keys := r.fixed(parse(t, "{}"))
	all, _, err := keysOf(t)
	if err != nil {
		t.Fatal(err)
	}
	live := []string{"cpu", "cpu_ms", "expose", "fs", "mem", "net_bytes", "net_conns", "net_rate", "open_files", "pids", "tcp", "udp", "wall_ms"}
	for key := range all {
		if _, is := keys[key]; is == slices.Contains(live, key) {
			t.Errorf("%s: it is decided nowhere, or twice, whether it can change", key)
		}
	}
}

// keysOf are the keys of a policy that says everything.
func keysOf(t *testing.T) (all map[string]bool, p policy.Policy, err error) {
	p = parse(t, "{imports: [math], preload: [math], seccomp: python, isolation: fresh, expose: [8000], udp: ['10.0.0.1:1'], net_conns: 1, net_rate: 1024, net_bytes: 1024}")
	before, _, err := keys(p, p)
	all = map[string]bool{}
	for key := range before {
		all[key] = true
	}
	return all, p, err
}

// What an annotation cannot do when a container is made, a later policy cannot do.
func TestReloadAddsNothing(t *testing.T) {
	r := made(t, "tcp: ['10.0.0.1:80']")
	for document, want := range map[string]string{
		"tcp: ['example.org:80']":        "resolves names itself",
		"tcp: ['*.example.org:80']":      "resolves names itself",
		"udp: [{deny: 'example.org:1'}]": "resolves names itself",
		"net_conns: 5":                   "net_conns: 5: connections under an engine's network",
		"net_rate: 1MiB":                 "net_rate",
		"net_bytes: 1MiB":                "net_bytes",
		"expose: [8000]":                 "expose: 8000: under an engine's network",
	} {
		_, err := r.Reload(parse(t, document), "test", Holds{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "allow_degraded") {
			t.Errorf("%s: %v", document, err)
		}
	}
	if _, err := r.Reload(parse(t, "tcp: ['10.0.0.2:80']"), "test", Holds{Network: errors.New("no programs")}); err == nil || !strings.Contains(err.Error(), "no programs") {
		t.Errorf("%v", err)
	}
	next, err := r.Reload(parse(t, "{tcp: ['10.0.0.2:80'], udp: ['10.0.0.3:53'], wall_ms: 5000}"), "test", Holds{})
	if err != nil {
		t.Fatal(err)
	}
	if held := by(next); held["tcp: 10.0.0.2:80"] != "cgroup eBPF" || held["udp: 10.0.0.3:53"] != "cgroup eBPF" || held["wall_ms: 5000"] == "" || held["tcp: 10.0.0.1:80"] != "" {
		t.Errorf("%v", held)
	}
	degraded := made(t, "{allow_degraded: true, tcp: ['example.org:80']}")
	next, err = degraded.Reload(parse(t, "{allow_degraded: true, tcp: ['example.net:80']}"), "test", Holds{})
	if err != nil || !slices.ContainsFunc(next.Enforced, func(e Enforcement) bool { return e.Missing && e.Rule == "tcp: example.net:80" }) {
		t.Errorf("%+v, %v", next, err)
	}
}

// A mandatory policy binds those that come later, too.
func TestReloadWithinBounds(t *testing.T) {
	r := made(t, "mem: 64MiB")
	r.Made.Bounds = []Bound{{"the mandatory policy strict", parse(t, "mem: 128MiB")}}
	limited := made(t, "imports: [math]")
	limited.Made.Bounds = []Bound{{"the mandatory policy strict", parse(t, "imports: [math, csv]")}}
	for document, want := range map[string]string{"imports: [csv]": "", "imports: [json]": "import json", "{}": "import every module"} {
		if _, err := limited.Reload(parse(t, document), "wide.yml", Holds{Modules: testModules}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", document, err)
		}
	}
	if _, err := r.Reload(parse(t, "mem: 128MiB"), "wide.yml", Holds{}); err != nil {
		t.Error(err)
	}
	_, err := r.Reload(parse(t, "mem: 256MiB"), "wide.yml", Holds{})
	if err == nil || !strings.Contains(err.Error(), "the policy of wide.yml permits what the mandatory policy strict does not") {
		t.Errorf("%v", err)
	}
}

func TestReloadOfFiles(t *testing.T) {
	at, elsewhere := volume("/srv/data", "/srv/data"), volume("/srv/data", "/data")
	files := func(rules string) string { return "fs: [" + rules + "]" }
	for name, tc := range map[string]struct {
		before string
		change func(*specs.Spec)
		after  string
		want   string // of the error
	}{
		"another pattern":       {`{read: "/srv/data/*.csv"}`, at, `{read: "/srv/data/*.txt"}`, ""},
		"a part instead":        {`{read: /srv/data}`, at, `{read: /srv/data/part}`, ""},
		"nothing":               {`{read: /srv/data}`, at, ``, ""},
		"less than writing":     {`{write: /srv/data}`, volume("/srv/data", "/srv/data", "rw"), `{read: /srv/data}`, ""},
		"denied":                {`{read: /srv/data}`, at, `{read: /srv/data}, {deny: "/**/*.key"}, {deny: /etc/secret}`, ""},
		"writing":               {`{read: /srv/data}`, at, `{write: /srv/data}`, "the mount at /srv/data is read-only"},
		"writing from above":    {`{read: /srv/data}`, at, `{read: /srv/data}, {write: "/srv/*/x"}`, "the mount at /srv/data is read-only"},
		"writing, engine's ro":  {`{write: /srv/data}`, volume("/srv/data", "/srv/data", "ro"), `{write: "/srv/data/*.txt"}`, "read-only"},
		"unmasked":              {`{deny: /etc/secret}`, at, ``, "fs: deny /etc/secret: it cannot change in a running container: it is a masked path"},
		"masked from above":     {`{read: /srv/data}, {deny: /srv/data/x}`, at, `{deny: /srv}`, ""},
		"elsewhere":             {`{read: /srv/data}, {read: /data}`, elsewhere, `{read: /srv/data/x}, {read: /data}`, "mounted elsewhere, at /data"},
		"elsewhere, by pattern": {`{read: /srv/data}, {read: /data}`, elsewhere, `{read: "/srv/**/x"}, {read: /srv/data}, {read: /data}`, "mounted elsewhere"},
		"elsewhere, names":      {`{read: /srv/data}, {read: /data}`, elsewhere, `{read: /srv/data}, {read: /data}, {deny: "/**/*.key"}`, ""},
		"elsewhere, others":     {`{read: /srv/data}, {read: /data}`, elsewhere, `{read: /srv/data}, {read: /data}, {read: /opt}`, ""},
		"more than Landlock":    {`{read: /srv/data/x}`, at, `{read: /srv/data/y}`, "fs: read /srv/data/y"},
		"less than Landlock":    {`{read: /srv/data/x}, {read: /srv/data/y}`, at, `{read: /srv/data/y}`, ""},
	} {
		before := files(tc.before)
		if tc.before == `{deny: /etc/secret}` {
			before = files(`{read: /srv/data}, {deny: /etc/secret}`)
		}
		r, next := made(t, before, tc.change), parse(t, files(tc.after))
		got, err := r.Reload(next, "test", Holds{Files: true})
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if back, err := got.Reload(r.Policy, "test", Holds{Files: true}); err != nil || back.Policy.Digest() != r.Policy.Digest() {
				t.Errorf("%s, and back: %v", name, err)
			}
			for _, rule := range next.FS() {
				if by(got)[text(rule)] == "" {
					t.Errorf("%s: nothing is said to hold %s", name, text(rule))
				}
			}
		}
	}
}

// Who has a file open that is taken away is in the way, whatever the file is called.
func TestTakesAway(t *testing.T) {
	r := made(t, `fs: [{read: "/srv/data/*.csv"}]`, volume("/srv/data", "/srv/data"))
	next, err := r.Reload(parse(t, `fs: [{read: "/srv/data/*.txt"}, {deny: "/etc/*.key"}]`), "test", Holds{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/srv/data/a.csv": true, "/srv/data/a.csv (deleted)": true, "/srv/data/a.txt": false, "/srv/data/other": false,
		"/etc/x.key": true, "/etc/passwd": false, "/usr/lib/x.so": false, "/srv/data": false,
	} {
		if got := r.TakesAway(next, path, Access{Read: true}); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	w := made(t, `fs: [{write: /srv/data}]`, volume("/srv/data", "/srv/data", "rw"))
	next, err = w.Reload(parse(t, `fs: [{read: /srv/data}]`), "test", Holds{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.TakesAway(next, "/srv/data/x", Access{Read: true}) || !w.TakesAway(next, "/srv/data/x", Access{Write: true}) {
		t.Error("what may be read stays, and what may not be written goes")
	}
}

// A bundle of psi's own has its filter from the policy that it was made with.
func TestReloadOfOwn(t *testing.T) {
	own := func(document string) *Record {
		p := parse(t, document)
		return &Record{Policy: p, Own: true, Made: Made{Policy: p}}
	}
	for name, tc := range map[string]struct{ before, after, want string }{
		"names":            {"{}", "tcp: ['example.org:80']", ""},
		"limits":           {"{}", "{net_conns: 5, net_rate: 1MiB, mem: 1GiB}", ""},
		"datagrams":        {"{}", "udp: ['10.0.0.1:1']", "udp: it cannot change"},
		"listening":        {"{}", "expose: [8000]", "expose: it cannot change"},
		"another port":     {"expose: [8000]", "expose: [8001]", ""},
		"wildcards":        {"{}", "tcp: ['*.example.org:80']", "tcp: it cannot change"},
		"fewer files":      {"fs: [/srv/a, /srv/b]", "fs: [/srv/b]", ""},
		"other files":      {"fs: [/srv/a]", "fs: [/srv/b]", ""},
		"writing":          {"fs: [/srv/a]", "fs: [{write: /srv/a}]", ""},
		"longer":           {"message: 1MiB", "{message: 2MiB, output: 2MiB}", ""},
		"more in /tmp":     {"tmp: 1MiB", "tmp: 2MiB", ""},
		"a /tmp at last":   {"tmp: 0", "tmp: 2MiB", "tmp cannot change"},
		"no /tmp any more": {"tmp: 1MiB", "tmp: 0", "tmp cannot change"},
		"fewer modules":    {"imports: [json, math]", "imports: [math]", ""},
		"no modules":       {"imports: [math]", "imports: []", ""},
		"no such module":   {"imports: [math]", "imports: [math, other]", ""},
		"modules, lacking": {"imports: [math]", "imports: [math, big]", "imports: [big math]: it cannot change in a running container: for big its root has no file of big.part, because the policy that the bundle was compiled with hides it"},
		"every module":     {"imports: [math]", "{}", `imports cannot change in a running container, from ["math"] to nothing: its root has the files of the list`},
		"modules at last":  {"{}", "imports: [math]", `imports cannot change in a running container, from nothing to ["math"]: what may import everything has done so`},
		"among modules":    {"{imports: [json, math], fs: [/lib/py/data]}", "{imports: [math], fs: [/lib/py/data]}", "imports: it cannot change in a running container: /lib/py/data is mounted among its modules, in /lib/py: keep the list"},
		"then among them":  {"imports: [json, math]", "{imports: [math], fs: [/lib/py/data]}", "is mounted among its modules"},
		"denied beside it": {"fs: [/srv/a]", "fs: [/srv/a, {deny: /srv/a/x}]", ""},
	} {
		for _, holds := range []Holds{{Modules: testModules}, {Files: true, Modules: testModules}} {
			r := own(tc.before)
			next, err := r.Reload(parse(t, tc.after), "test", holds)
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", name, err)
			}
			if err != nil {
				continue
			}
			if _, err := next.Reload(r.Policy, "test", holds); err != nil {
				t.Errorf("%s, and back: %v", name, err)
			}
			for _, rule := range next.Policy.FS() {
				if held := by(next)[text(rule)]; strings.Contains(held, lsm) != holds.Files || !strings.HasPrefix(held, "mounts") {
					t.Errorf("%s: %q is said to hold %s", name, held, text(rule))
				}
			}
		}
	}
	// Where files of the host are in it is what the policy says, and not the one that it was made with.
	r := own("fs: [/srv/a]")
	if places := r.Places(parse(t, "fs: [/srv/b/*.csv]")); fmt.Sprint(places) != "[/srv/b]" {
		t.Errorf("%v", places)
	}
	// What a machine's settings require holds for files, too.
	r.Made.Bounds = []Bound{{"the mandatory policy strict", parse(t, "fs: [/srv/a]")}}
	if _, err := r.Reload(parse(t, "fs: [/srv/b]"), "wide.yml", Holds{}); err == nil || !strings.Contains(err.Error(), "the mandatory policy strict does not") {
		t.Errorf("%v", err)
	}
}
