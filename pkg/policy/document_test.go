package policy

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const family = `version: 1
defaults: {imports: [math, json], pids: 32}
sandboxes:
  base:
    mem: 128MiB
    cpu: 0.5
    fs: [/srv/data, {deny: /srv/data/private}]
    tcp: ["127.0.0.1:6379"]
  job:
    extends: base
    mem: 1GiB
    pids: 16
    fs: [{write: /srv/out}, /srv/data/private/x]
    tcp: ["10.0.0.0/8:5432", {deny: "10.9.0.0/16:5432"}]
    imports: [json, numpy]
  narrow: {extends: job, mem: 64MiB, read_only: false, fs: [{deny: /srv/out/**}], tcp: [{deny: "127.0.0.0/8:6379"}]}
  alone: {}
`

func effective(t *testing.T, text string, choice Choice) Effective {
	t.Helper()
	d, errs := ReadDocument([]byte(text), "p.yml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	e, err := d.Resolve(choice)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestInheritance(t *testing.T) {
	for name, want := range map[string]string{
		"alone":  `{"fs":[],"imports":["json","math"],"mem":268435456,"pids":32,"tcp":[]}`,
		"base":   `{"cpu":0.5,"fs":["/srv/data",{"deny":"/srv/data/private"}],"imports":["json","math"],"mem":"128MiB","pids":32,"tcp":["127.0.0.1:6379"]}`,
		"job":    `{"cpu":0.5,"fs":["/srv/data",{"deny":"/srv/data/private"},{"write":"/srv/out"},"/srv/data/private/x"],"imports":["json","math","numpy"],"mem":"1GiB","pids":16,"tcp":["127.0.0.1:6379","10.0.0.0/8:5432",{"deny":"10.9.0.0/16:5432"}]}`,
		"narrow": `{"cpu":0.5,"fs":["/srv/data",{"deny":"/srv/data/private"},{"write":"/srv/out"},"/srv/data/private/x",{"deny":"/srv/out/**"}],"imports":["json","math","numpy"],"mem":"64MiB","pids":16,"tcp":["127.0.0.1:6379","10.0.0.0/8:5432",{"deny":"10.9.0.0/16:5432"},{"deny":"127.0.0.0/8:6379"}]}`,
	} {
		got := effective(t, family, Choice{Sandbox: name}).Policy
		if want := must(t)(Parse([]byte(want), "want.json")); got.Digest() != want.Digest() {
			t.Errorf("%s:\n got %s\nwant %s", name, got.Canonical(), want.Canonical())
		}
	}
	// What a parent denies no child opens again.
	job := effective(t, family, Choice{Sandbox: "job"}).Policy
	if access, by := DecideFS(job.FS(), "/srv/data/private/x"); access != Denied || by[0].Mode != Deny {
		t.Errorf("%v by %v", access, by)
	}
}

// TestInheritanceLeavesParentsAlone resolves siblings whose parent has room in
// its lists.
func TestInheritanceLeavesParentsAlone(t *testing.T) {
	text := "version: 1\nsandboxes:\n  p: {fs: [/srv/1, /srv/2, /srv/3], imports: [a, c, e], tcp: ['1.1.1.1:1', '1.1.1.1:2', '1.1.1.1:3']}\n"
	for _, name := range []string{"x", "y", "z"} {
		text += fmt.Sprintf("  %s: {extends: p, fs: [/srv/%s], imports: [%s, b], tcp: ['%s.example:1']}\n", name, name, name, name)
	}
	d, errs := ReadDocument([]byte(text), "p.yml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	r := d.resolver(&variables{used: map[string]bool{}})
	for _, s := range d.sandboxes {
		r.resolve(s)
	}
	for _, s := range d.sandboxes[1:] {
		got := r.resolve(s).policy
		modules, _ := got.Imports()
		if got.FS()[3].Pattern != "/srv/"+s.name || !slices.Equal(modules, []string{"a", "b", "c", "e", s.name}) || got.TCP()[3].Host != s.name+".example" {
			t.Errorf("%s: %s", s.name, got.Canonical())
		}
	}
	if modules, _ := r.resolve(d.sandboxes[0]).policy.Imports(); len(modules) != 3 {
		t.Errorf("the parent has %v", modules)
	}
}

func TestOrigins(t *testing.T) {
	var got []string
	for _, o := range effective(t, family, Choice{Sandbox: "job"}).Origins {
		got = append(got, o.String())
	}
	for _, want := range []string{
		"mem: 1GiB (sandbox job, p.yml:11:10)", "cpu: 0.5 (sandbox base, p.yml:6:10)", "pids: 16 (sandbox job, p.yml:12:11)",
		"tmp: 64MiB (built in)", "fs: read /srv/data (sandbox base, p.yml:7:10)", "fs: deny /srv/data/private (sandbox base, p.yml:7:28)",
		"fs: write /srv/out (sandbox job, p.yml:13:18)", "tcp: deny 10.9.0.0/16:5432 (sandbox job, p.yml:14:37)",
		"imports: json (defaults, p.yml:2:28)", "imports: numpy (sandbox job, p.yml:15:21)",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
	for text, want := range map[string]string{
		"imports: []": "imports: no module (document, p.yml:1:10)", "{}": "imports: every module (built in)",
		"imports: ['none', math]": "imports: none (document, p.yml:1:11)", "version: 1.0": "imports: no module (built in)", "tcp: []": "tcp: none (built in)",
	} {
		var got []string
		for _, o := range effective(t, text, Choice{}).Origins {
			got = append(got, o.String())
		}
		if !slices.Contains(got, want) {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// TestOriginsAreComplete checks that the origins of a policy spell it.
func TestOriginsAreComplete(t *testing.T) {
	for _, name := range []string{"alone", "base", "job", "narrow"} {
		e := effective(t, family, Choice{Sandbox: name})
		count := map[string]int{}
		for _, o := range e.Origins {
			if o.Value != "none" && o.Value != noModule && o.Value != "every module" {
				count[o.Key]++
			}
		}
		allowed, denied := e.Policy.TCPRules()
		modules, _ := e.Policy.Imports()
		if count["fs"] != len(e.Policy.FS()) || count["tcp"] != len(allowed)+len(denied) || count["imports"] != len(modules) || len(count) < 10 {
			t.Errorf("%s: %v", name, count)
		}
	}
}

func TestChoose(t *testing.T) {
	one := "version: 1\nsandboxes: {only: {pids: 3}}"
	if p := must(t)(Parse([]byte(one), "p.yml")); p.Limits().PIDs != 3 {
		t.Error("the only sandbox is not the policy")
	}
	for _, test := range []struct{ text, sandbox, want string }{
		{family, "", "p.yml: holds several sandboxes: base, job, narrow, alone: choose one, such as p.yml#base"},
		{family, "jop", `p.yml: "jop": is not a sandbox of the document: it holds base, job, narrow, alone (did you mean "job"?)`},
		{"pids: 1", "job", `p.yml: "job": the document holds one policy without a name: leave the name out: p.yml`},
	} {
		_, err := ParseSandbox([]byte(test.text), "p.yml", Choice{Sandbox: test.sandbox})
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: %v", test.sandbox, err)
		}
	}
}

func TestSplitSandbox(t *testing.T) {
	for text, want := range map[string][2]string{
		"a.yml#job": {"a.yml", "job"}, "a.yml": {"a.yml", ""}, "./a#b.yml": {"./a#b.yml", ""}, "/c#/p.yml": {"/c#/p.yml", ""},
		"/c#/p.yml#x": {"/c#/p.yml", "x"}, "etl#job": {"etl", "job"}, "#job": {"#job", ""}, "a.yml#": {"a.yml#", ""}, "a#b#c": {"a#b", "c"}, "": {"", ""},
	} {
		if file, sandbox := SplitSandbox(text); file != want[0] || sandbox != want[1] {
			t.Errorf("%q: %q, %q", text, file, sandbox)
		}
	}
	if !IsPath("a.yml#job") || !IsPath("./a#job") || IsPath("etl#job") {
		t.Error("IsPath does not look before the #")
	}
}

func TestLoadSandbox(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "jobs.yml"), family)
	if p := must(t)(Load(path + "#job")); p.Limits().PIDs != 16 {
		t.Errorf("loaded %s", p.Canonical())
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "choose one, such as "+path+"#base") {
		t.Errorf("got %v", err)
	}
	if p := must(t)(lookupIn(dir, "jobs#base")); p.Limits().PIDs != 32 {
		t.Errorf("looked up %s", p.Canonical())
	}
	if _, err := lookupIn(dir, "defaults#x"); err == nil || !strings.Contains(err.Error(), "leave the name out") {
		t.Errorf("got %v", err)
	}
	write(t, filepath.Join(dir, "v.yml"), "fs: ['${WORKDIR}/in']")
	p := must(t)(LoadVariables(filepath.Join(dir, "v.yml"), map[string]string{"WORKDIR": "/srv/w"}))
	if p.FS()[0].Pattern != "/srv/w/in" {
		t.Errorf("loaded %s", p.Canonical())
	}
}

func TestVariables(t *testing.T) {
	const text = `{"version": 1, "defaults": {"fs": ["/srv/${USER}/x*"]}, "sandboxes": {
		"a": {"fs": [{"write": "${WORKDIR}/out/**"}], "tcp": ["${HOST}:443", "10.0.0.1:${PORT}", {"deny": "${HOST}:80"}]}, "b": {}}}`
	good := map[string]string{"USER": "bob-1", "WORKDIR": "/srv/job 7", "HOST": "API.example.com", "PORT": "5432"}
	p := must(t)(ParseSandbox([]byte(text), "p.json", Choice{"a", good}))
	want := `"fs":[{"read":"/srv/bob-1/x*"},{"write":"/srv/job 7/out/**"}]`
	if got := string(p.Canonical()); !strings.Contains(got, want) || !strings.Contains(got, `"tcp":["api.example.com:443","10.0.0.1:5432",{"deny":"api.example.com:80"}]`) {
		t.Errorf("got %s", got)
	}
	d, errs := ReadDocument([]byte(text), "p.json")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if names, err := d.Variables("a"); err != nil || strings.Join(names, " ") != "HOST PORT USER WORKDIR" {
		t.Errorf("%v, %v", names, err)
	}
	if names, err := d.Variables("b"); err != nil || strings.Join(names, " ") != "USER" {
		t.Errorf("%v, %v", names, err)
	}
	for _, test := range []struct{ name, value, want string }{
		{"WORKDIR", "srv", "is not an absolute path"}, {"WORKDIR", "/", "is not an absolute path below /"}, {"WORKDIR", "/srv/", "ends in a /"},
		{"WORKDIR", "/srv/*", "holds a wildcard"}, {"WORKDIR", "/srv/[a]", "holds a wildcard"}, {"WORKDIR", "/srv/../etc", `has a ".." component`},
		{"WORKDIR", "/proc/1", "no policy may open /proc"}, {"WORKDIR", "", "is empty or not text"}, {"WORKDIR", "/srv/\xff", "is empty or not text"},
		{"WORKDIR", "/srv/a\x00", "is empty or not text"}, {"WORKDIR", "/srv/${USER}", `holds "${"`}, {"WORKDIR", "/srv//a", "empty component"},
		{"USER", "a/b", "holds a /"}, {"USER", "..", `has a ".." component`}, {"USER", ".", `has a "." component`}, {"USER", "*", "holds a wildcard"}, {"USER", "/etc", "holds a /"},
		{"HOST", "a.b:1", "IPv6 address without brackets"}, {"HOST", "10.0.0.0/8", `holds "/"`}, {"HOST", "*.a", `holds "*"`}, {"HOST", "[::1]", `holds "["`}, {"HOST", "a b", `holds " "`},
		{"HOST", "localhost", "names this host"}, {"PORT", "1-5", "holds a range of ports"}, {"HOST", "a:1-5", "holds a range of ports"}, {"PORT", "0", "has no valid port"},
	} {
		values := map[string]string{}
		for k, v := range good {
			values[k] = v
		}
		values[test.name] = test.value
		_, err := ParseSandbox([]byte(text), "p.json", Choice{"a", values})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s=%q: %v", test.name, test.value, err)
		}
	}
	missing := map[string]string{"USER": "a"}
	if _, err := ParseSandbox([]byte(text), "p.json", Choice{"a", missing}); err == nil || !strings.HasPrefix(err.Error(), `p.json:2:26: fs: "${WORKDIR}/out/**": needs the variable WORKDIR`) {
		t.Errorf("got %v", err)
	}
	unknown := map[string]string{"USER": "a", "USAR": "a"}
	if _, err := ParseSandbox([]byte(text), "p.json", Choice{"b", unknown}); err == nil || !strings.Contains(err.Error(), `"USAR": is not a variable of this policy: it uses USER (did you mean "USER"?)`) {
		t.Errorf("got %v", err)
	}
	if _, err := Defaults().AllowFS("/srv/${X}", Read); err == nil {
		t.Error("a variable without a document is accepted")
	}
	if p := must(t)(Defaults().AllowFS("/srv/[$]{X}", Read)); !Match(p.FS()[0].Pattern, "/srv/${X}") {
		t.Error("[$]{ is not the characters themselves")
	}
}

// TestPyIsolate reads the documents of PyIsolate's POLICY.md.
func TestPyIsolate(t *testing.T) {
	const text = `version: 1.0
defaults:
  imports: [math]
sandboxes:
  base:
    fs:
      - allow: "/srv/data/**/*.csv"
      - deny:  "/srv/data/private/**"
    net:
      - connect: ["127.0.0.1:6379"]     # redis
      - deny: "10.0.0.1:1"
  myguest:
    extends: base
    imports: [json]
  job:
    fs:
      - read: "/srv/input"
      - write: "/srv/output"
      - allow: /tmp
    net:
      - connect: "api.example.com:443"
    cpu_ms: 50
`
	for name, want := range map[string]string{
		"base":    `{"fs":[{"write":"/srv/data/**/*.csv"},{"deny":"/srv/data/private/**"}],"tcp":["127.0.0.1:6379",{"deny":"10.0.0.1:1"}],"imports":["math"]}`,
		"myguest": `{"fs":[{"write":"/srv/data/**/*.csv"},{"deny":"/srv/data/private/**"}],"tcp":["127.0.0.1:6379",{"deny":"10.0.0.1:1"}],"imports":["math","json"]}`,
		"job":     `{"fs":["/srv/input",{"write":"/srv/output"}],"tcp":["api.example.com:443"],"imports":["math"],"cpu_ms":50}`,
	} {
		got := effective(t, text, Choice{Sandbox: name}).Policy
		if want := must(t)(Parse([]byte(want), "want.json")); got.Digest() != want.Digest() {
			t.Errorf("%s:\n got %s\nwant %s", name, got.Canonical(), want.Canonical())
		}
	}
	d, errs := ReadDocument([]byte(text), "p.yml")
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var notes []string
	for _, n := range d.Notes() {
		notes = append(notes, n.String())
	}
	want := []string{
		`p.yml:7:16: fs: allow "/srv/data/**/*.csv" is read as {write: "/srv/data/**/*.csv"}, which permits reading and writing`,
		`p.yml:7:16: fs: the * in "/srv/data/**/*.csv" matches within one name; PyIsolate let it match slashes too: write ** for directories`,
		`p.yml:10:19: net: connect "127.0.0.1:6379" is read as tcp: ["127.0.0.1:6379"]`,
		`p.yml:11:15: net: deny "10.0.0.1:1" is read as tcp: [{deny: "10.0.0.1:1"}]`,
		`p.yml:18:16: fs: write "/srv/output" permits reading too: there is no rule for writing only`,
		`p.yml:19:16: fs: allow "/tmp" is left out: every guest has a /tmp of its own; that of the host stays hidden`,
		`p.yml:21:18: net: connect "api.example.com:443" is read as tcp: ["api.example.com:443"]`,
	}
	if !slices.Equal(notes, want) {
		t.Errorf("the notes are\n%s", strings.Join(notes, "\n"))
	}
	for text, want := range map[string]string{
		"version: 1.0\nfs: [{allow: /srv/a}]\nnet: []\nimports: []":         `{"fs":[{"write":"/srv/a"}],"imports":[]}`,
		`{"version": "1.0", "fs": null, "net": null}`:                       `{"imports":[]}`,
		"version: 1.0\ndefaults:\nsandboxes: {a: {mem: 64MiB, tcp: [a:1]}}": `{"imports":[],"mem":"64MiB","tcp":["a:1"]}`,
	} {
		got := effective(t, text, Choice{}).Policy
		if want := must(t)(Parse([]byte(want), "want.json")); got.Digest() != want.Digest() {
			t.Errorf("%s:\n got %s\nwant %s", text, got.Canonical(), want.Canonical())
		}
	}
}

func TestCheckAllFindsAll(t *testing.T) {
	errs := CheckAll([]byte("pids: 0\nmem: 1\nmem: 2\nfs: [a, {b: c}, d]\nx: 1\ncpu: !!str 1\n"), "p.yml")
	var places []string
	for _, e := range errs {
		places = append(places, fmt.Sprintf("%d:%d", e.Line, e.Column))
		if e.Text == "" {
			t.Errorf("%v has no line", e)
		}
	}
	if got := strings.Join(places, " "); got != "1:7 2:6 3:1 4:6 4:10 4:17 5:1 6:6" {
		t.Errorf("errors at %s: %v", got, errs)
	}
	many := CheckAll([]byte("fs: ["+strings.Repeat("x,", 2000)+"]"), "p.yml")
	if len(many) != maxErrors+1 || many[maxErrors].Error() != "p.yml: 1900 more errors: correct these first" {
		t.Errorf("%d errors, the last %v", len(many), many[len(many)-1])
	}
	if errs := CheckAll([]byte("{}"), "p.yml"); errs != nil {
		t.Errorf("%v", errs)
	}
}

// TestExcerptIsHarmless shows lines that a terminal would obey.
func TestExcerptIsHarmless(t *testing.T) {
	for _, text := range []string{"pids: \"\x1b[2J\"", "\tpids: 0", "pids: '" + strings.Repeat("é", 300) + "'", "x\r\npids: 0", "{a: 1," + strings.Repeat(" ", 200) + "b: 1}"} {
		for _, e := range CheckAll([]byte(text), "p.yml") {
			for line := range strings.Lines(e.Excerpt()) {
				if strings.ContainsAny(line, "\x1b\t\r") || len(line) > 600 {
					t.Errorf("%q: %q", text, line)
				}
			}
		}
	}
}

// TestDocumentBombs gives ReadDocument families that are small and costly.
func TestDocumentBombs(t *testing.T) {
	var chain, star strings.Builder
	chain.WriteString("version: 1\nsandboxes:\n  s0: {fs: [")
	star.WriteString("version: 1\nsandboxes:\n  s0: {fs: [")
	for i := range 4000 {
		fmt.Fprintf(&chain, "/srv/%d, ", i)
		fmt.Fprintf(&star, "/srv/%d, ", i)
	}
	chain.WriteString("]}\n")
	star.WriteString("]}\n")
	for i := 1; i < maxSandboxes; i++ {
		fmt.Fprintf(&chain, "  s%d: {extends: s%d, fs: [/srv/x%d]}\n", i, i-1, i)
		fmt.Fprintf(&star, "  s%d: {extends: s0, fs: [/srv/x%d]}\n", i, i)
	}
	denies := "tcp: ["
	for i := range 4000 {
		denies += fmt.Sprintf("'10.%d.%d.0/24:1',", i/250, i%250)
	}
	for i := range maxDenied {
		denies += fmt.Sprintf("{deny: '10.%d.%d.1:1'},", i/250, i%250)
	}
	wide := "tcp: ['0.0.0.0/0:1', '[::/0]:1',"
	for i := range maxDenied {
		wide += fmt.Sprintf("{deny: '[2a00:%x::1]:1'},", i*77)
	}
	for name, test := range map[string]struct {
		text string
		bad  bool
	}{
		"chain": {chain.String(), true}, "star": {star.String(), false}, "denies": {denies + "]", true}, "wide": {wide + "]", true},
		"sandboxes": {"version: 1\nsandboxes: {" + strings.Repeat("a: {},", 300) + "}", true},
	} {
		start := time.Now()
		_, errs := ReadDocument([]byte(test.text), "bomb")
		if (len(errs) > 0) != test.bad {
			t.Errorf("%s: %v", name, errs)
		}
		t.Logf("%s: %v", name, time.Since(start))
		if time.Since(start) > 10*time.Second {
			t.Errorf("%s took %v", name, time.Since(start))
		}
	}
	var e *Error
	if _, err := Parse([]byte(wide+"]"), "p.yml"); !errors.As(err, &e) || e.Key != "tcp" {
		t.Errorf("got %v", err)
	}
}
