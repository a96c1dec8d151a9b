package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// psiPolicy runs "psi-runtime policy ARGS" and returns what it printed and its
// exit code.
func psiPolicy(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	app := &cli.App{Name: "psi-runtime", Reader: strings.NewReader(stdin), Writer: &out, ErrWriter: &errOut,
		Commands: []*cli.Command{policyCommand(&global{})}, ExitErrHandler: func(*cli.Context, error) {}}
	err := app.Run(flagsFirst(app, append([]string{"psi-runtime", "policy"}, args...)))
	var status exitStatus
	if err != nil && !errors.As(err, &status) {
		t.Fatalf("%v: the error %v would go to the log", args, err)
	}
	return out.String(), errOut.String(), int(status)
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

const jobs = `version: 1
defaults: {imports: [math, json]}
sandboxes:
  base:
    mem: 128MiB
    fs: [/srv/data/**/*.csv, {deny: /srv/data/private/**}]
    tcp: ["127.0.0.1:6379"]
  job:
    extends: base
    fs: [{write: "${WORKDIR}/out"}]
    tcp: ["api.example.com:443", "10.0.0.0/8:5432", {deny: "10.9.0.0/16:5432"}]
    imports: [numpy]
`

func TestPolicyCheck(t *testing.T) {
	good := file(t, "good.yml", jobs)
	if out, errs, code := psiPolicy(t, "", "check", good, "defaults", "web-scraper"); code != 0 || out != "" || errs != "" {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	bad := file(t, "bad.yml", "memory: 1GiB\nfs:\n  - data/*\n  - {reed: /srv}\ntcp: [\"*.a:1\"]\n")
	out, _, code := psiPolicy(t, "", "check", bad)
	want := bad + `:1:1: "memory": is not a key of a policy: the keys are read_only, allow_degraded, cpu, fs, tcp, udp, expose, imports, mem, cpu_ms, wall_ms, pids, open_files, tmp, message, output, net_conns, net_rate, net_bytes, seccomp, isolation, preload (did you mean "mem"?)
  1 | memory: 1GiB
    | ^
` + bad + `:3:5: fs: "data/*": is not absolute: begin it with /, such as /srv/data/*.csv
  3 |   - data/*
    |     ^
` + bad + `:4:6: fs: "reed": is not a mode of an fs rule: write read, write or deny (did you mean "read"?)
  4 |   - {reed: /srv}
    |      ^
` + bad + `:5:7: tcp: "*.a:1": has a wildcard that covers a whole top-level domain or every name: write *.example.org, with at least two parts after the star
  5 | tcp: ["*.a:1"]
    |       ^
`
	if code != 1 || out != want {
		t.Errorf("code %d:\n%s\nwant\n%s", code, out, want)
	}
	if _, errs, code := psiPolicy(t, "", "check", "/nowhere/x.yml"); code != 2 || !strings.Contains(errs, "no such file") {
		t.Errorf("code %d: %s", code, errs)
	}
	if again, errs, code := psiPolicy(t, "", "check", "/nowhere/x.yml", bad, "nosuch"); code != 2 || again != want || !strings.Contains(errs, "no such file") || !strings.Contains(errs, `"nosuch"`) {
		t.Errorf("code %d: %s\n%s", code, errs, again)
	}
	if out, _, code := psiPolicy(t, "pids: 0", "check", "-"); code != 1 || !strings.HasPrefix(out, "stdin:1:7: pids:") {
		t.Errorf("code %d: %s", code, out)
	}
	if _, errs, code := psiPolicy(t, "", "check", good+"#jop"); code != 2 || !strings.Contains(errs, `did you mean "job"?`) {
		t.Errorf("code %d: %s", code, errs)
	}
}

func TestPolicyCheckForMachines(t *testing.T) {
	bad := file(t, "bad.yml", "version: 1.0\nsandboxes:\n  a:\n    fs: [{allow: /srv/a}]\n    pids: x\n")
	out, _, code := psiPolicy(t, "", "check", bad, "--json")
	var report struct {
		Files []struct {
			File   string
			Errors []map[string]any
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 1 {
		t.Fatalf("code %d: %v\n%s", code, err, out)
	}
	e := report.Files[0].Errors[0]
	if report.Files[0].File != bad || e["line"] != 5.0 || e["column"] != 11.0 || e["key"] != "pids" || e["value"] != "x" || e["text"] != "    pids: x" {
		t.Errorf("%v", report)
	}
	translated := file(t, "ok.yml", "version: 1.0\nfs: [{allow: /srv/a}]\n")
	out, _, code = psiPolicy(t, "", "check", "--sarif", bad, translated)
	var log struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct{ Rules []struct{ ID string } }
			}
			Results []struct {
				RuleID, Level string
				Locations     []struct {
					PhysicalLocation struct {
						ArtifactLocation struct{ URI string }
						Region           struct{ StartLine, StartColumn int }
					}
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &log); err != nil || code != 1 || log.Version != "2.1.0" || len(log.Runs) != 1 {
		t.Fatalf("code %d: %v\n%s", code, err, out)
	}
	levels := map[string]int{}
	for _, r := range log.Runs[0].Results {
		levels[r.Level]++
		if where := r.Locations[0].PhysicalLocation; where.Region.StartLine == 0 || where.ArtifactLocation.URI == "" {
			t.Errorf("%+v", r)
		}
	}
	if levels["error"] != 1 || levels["note"] != 1 {
		t.Errorf("%v in %s", levels, out)
	}
}

func TestPolicyShow(t *testing.T) {
	path := file(t, "jobs.yml", jobs)
	if out, errs, code := psiPolicy(t, "", "show", path+"#job", "--var", "WORKDIR=/srv/a,b"); code != 0 || !strings.Contains(out, "write /srv/a,b/out") {
		t.Errorf("a comma in a value: code %d: %s%s", code, out, errs)
	}
	out, _, code := psiPolicy(t, "", "show", path+"#job", "--var", "WORKDIR=/srv/w")
	for _, want := range []string{
		"mem             128MiB                     sandbox base, " + path + ":5:10",
		"pids            64                         built in",
		"fs              read /srv/data/**/*.csv    sandbox base, " + path + ":6:10",
		"                write /srv/w/out           sandbox job, " + path + ":10:18",
		"                deny 10.9.0.0/16:5432      sandbox job",
		"imports         math, json                 defaults, " + path + ":2:22",
		"                numpy                      sandbox job",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("code %d: no %q in\n%s", code, want, out)
		}
	}
	for _, test := range [][]string{
		{"needs the variable WORKDIR", "show", path + "#job"},
		{"holds several sandboxes: base, job", "show", path},
		{`"X": is not a variable of this policy: it uses WORKDIR`, "show", path + "#job", "--var", "X=1", "--var", "WORKDIR=/srv/w"},
		{"holds a wildcard", "show", path + "#job", "--var", "WORKDIR=/srv/*"},
		{"write NAME=VALUE", "show", path + "#job", "--var", "WORKDIR"},
	} {
		if _, errs, code := psiPolicy(t, "", test[1:]...); code != 1 || !strings.Contains(errs, test[0]) {
			t.Errorf("%v: code %d: %s", test, code, errs)
		}
	}
	if out, _, code := psiPolicy(t, "", "show", "--canonical", path+"#base"); code != 0 || !strings.HasPrefix(out, `{"allow_degraded":false`) {
		t.Errorf("code %d: %s", code, out)
	}
	if out, _, code := psiPolicy(t, "", "show", "defaults", "--text"); code != 0 || !strings.HasPrefix(out, "# What holds") {
		t.Errorf("code %d: %s", code, out)
	}
	if out, _, code := psiPolicy(t, "", "show", "defaults", "--json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("code %d: %s", code, out)
	}
}

func TestPolicyExplain(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.csv", "b.txt", "private.csv"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := "fs:\n- " + dir + "/*.csv\n- deny: " + dir + "/private*\n- write: /srv\n" +
		"tcp: ['127.0.0.1:80', '0.0.0.0/0:443', 'a.example:9', {deny: '10.0.0.0/8:443'}]\nimports: [xml]\n"
	if err := os.MkdirAll("/srv", 0o755); err != nil {
		t.Fatal(err)
	}
	path := file(t, "p.yml", text)
	for _, test := range []struct {
		target string
		code   int
		want   string
	}{
		{"fs:" + dir + "/a.csv", 0, "allowed to read\n  by rule:      fs: {read: \"" + dir + "/*.csv\"}\n  by mechanism: a read-only bind mount of " + dir + "/a.csv\n"},
		{"fs:" + dir + "/later.csv", 0, "there is no such file now"},
		{"fs:" + dir + "/b.txt", 1, "denied\n  by rule:      no rule"},
		{"fs:" + dir + "/private.csv", 1, "denied\n  by rule:      fs: {deny: "},
		{"fs:/srv/x/y", 0, "allowed to read and write\n  by rule:      fs: {write: \"/srv\"}\n  by mechanism: a writable bind mount of the directory /srv"},
		{"fs:/usr/lib/python3.11/os.py", 1, "the guest finds what its own root has"},
		{"fs:relative", 2, "is not an absolute, clean path"},
		{"fs:/srv/../etc", 2, "is not an absolute, clean path"},
		{"net:127.0.0.1:80", 0, `by rule:      tcp: "127.0.0.1:80"`},
		{"net:127.0.0.1:81", 1, "no rule"},
		{"net:8.8.8.8:443", 0, `tcp: "0.0.0.0/0:443"`},
		{"net:127.0.0.1:443", 1, "no rule"},
		{"net:169.254.169.254:443", 1, "no rule"},
		{"net:10.1.2.3:443", 1, `tcp: {deny: "10.0.0.0/8:443"}`},
		{"net:A.example.:9", 0, `tcp: "a.example:9"`},
		{"net:b.example:9", 1, "no rule"},
		{"net:10.0.0.0/8:1", 2, "is a block of addresses"},
		{"import:xml.etree", 0, "imports: [xml]"},
		{"import:os", 1, "no rule"},
		{"import:o s", 2, "is not the name of a Python module"},
		{"env:HOME", 2, "is nothing to explain"},
	} {
		out, errs, code := psiPolicy(t, "", "explain", path, test.target)
		if code != test.code || !strings.Contains(out+errs, test.want) {
			t.Errorf("%s: code %d\n%s%s", test.target, code, out, errs)
		}
	}
	if out, _, _ := psiPolicy(t, "", "explain", "defaults", "import:os", "--json"); !strings.Contains(out, `"allowed": true`) {
		t.Error(out)
	}
}

// TestPolicyExplainEvent asks for the line that allows what was denied, and then
// whether it does.
func TestPolicyExplainEvent(t *testing.T) {
	base := "fs: [{deny: /srv/no}, /srv/yes]\ntcp: ['127.0.0.1:80', 'here.example.org:80', {deny: '10.0.0.0/8:1'}]\nimports: []\n"
	path := file(t, "p.yml", base)
	for _, test := range []struct{ event, line, target string }{
		{`{"kind":"fs","path":"/srv/data/x.csv","access":"read"}`, `fs: [{read: "/srv/data/x.csv"}]`, "fs:/srv/data/x.csv"},
		{`{"event":"DENIED","ts":1.5,"details":{"kind":"fs","path":"/srv/a*[b]?${C}","access":"write"}}`, `fs: [{write: "/srv/a[*][[]b][?][$]{C}"}]`, "fs:/srv/a*[b]?${C}"},
		{`{"path":"/srv/yes/x","access":"write"}`, `fs: [{write: "/srv/yes/x"}]`, "fs:/srv/yes/x"},
		{`{"kind":"net","address":"1.2.3.4:443"}`, `tcp: ["1.2.3.4:443"]`, "net:1.2.3.4:443"},
		{`{"kind":"net","address":"::1","port":80}`, `tcp: ["[::1]:80"]`, "net:[::1]:80"},
		{`{"details":{"address":"127.65.0.9:443","name":"API.example.com"}}`, `tcp: ["api.example.com:443"]`, "net:api.example.com:443"},
		{`{"details":{"kind":"net","operation":"send","address":"192.0.2.1:53","protocol":"udp"}}`, `udp: ["192.0.2.1:53"]`, "udp:192.0.2.1:53"},
		{`{"details":{"kind":"bind","operation":"bind","address":"0.0.0.0:8000"}}`, `expose: [8000]`, "expose:8000"},
		{`{"details":{"kind":"net","name":"here.example.org","address":"127.65.0.1:80","protocol":"tcp","reason":"rebound"}}`,
			`tcp: [{allow: "here.example.org:80", private: true}]`, "net:here.example.org:80"},
		{`{"module":"xml.etree"}`, `imports: [xml.etree]`, "import:xml.etree"},
	} {
		out, errs, code := psiPolicy(t, test.event, "explain", path, "-")
		if code != 0 || out != test.line+"\n" {
			t.Errorf("%s: code %d: %s%s", test.event, code, out, errs)
			continue
		}
		alone := file(t, "line.yml", out)
		if out, errs, code := psiPolicy(t, "", "explain", alone, test.target); code != 0 {
			t.Errorf("%s does not allow %s: %s%s", test.line, test.target, out, errs)
		}
	}
	for event, want := range map[string]string{
		`{"kind":"fs","path":"/srv/no/x"}`:                       `no line allows "/srv/no/x": {deny: "/srv/no"} wins`,
		`{"kind":"fs","path":"/srv/yes/x"}`:                      "allows fs:/srv/yes/x already",
		`{"kind":"fs","path":"/proc/1/mem"}`:                     "no policy may open /proc",
		`{"kind":"fs","path":"rel"}`:                             "is not absolute and clean",
		`{"kind":"fs","path":"/srv/a","access":"mknod"}`:         "read and write have rules",
		`{"kind":"net","address":"10.0.0.1:1"}`:                  `no line allows 10.0.0.1:1: tcp: {deny: "10.0.0.0/8:1"} wins`,
		`{"kind":"net","address":"127.0.0.1:80"}`:                "already",
		`{"kind":"bind","address":"127.0.0.1:0"}`:                "is not a port at which a guest can listen",
		`{"kind":"bind","address":"[::1]:80"}`:                   "is not a port at which a guest can listen",
		`{"kind":"bind","address":"nowhere"}`:                    "is not address:port",
		`{"kind":"net","address":"1.2.3.4:5","protocol":"sctp"}`: "tcp and udp have rules",
		`{"kind":"socket","family":2,"type":2,"protocol":17}`:    `its kind is "socket"`,
		`{"kind":"mount","path":"/x"}`:                           `its kind is "mount"`,
		`{}`:                                                     `its kind is ""`,
		`{"kind":"net"}`:                                         "it has no address",
		`[]`:                                                     "is not one JSON object",
		`{"module":"a"} {"module":"b"}`:                          "is not one JSON object",
		`{"path":"` + strings.Repeat("x", 70_000) + `"}`:         "larger than",
	} {
		if out, errs, code := psiPolicy(t, event, "explain", path, "-"); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%.80s: code %d: %s%s", event, code, out, errs)
		}
	}
}

func TestPolicyDiff(t *testing.T) {
	path := file(t, "jobs.yml", jobs)
	out, errs, code := psiPolicy(t, "", "diff", path+"#base", path+"#job", "--var", "WORKDIR=/srv/data/private")
	want := `fs: write /srv/data/private/out: by write /srv/data/private/out
`
	if strings.Contains(out, want) {
		t.Errorf("what is denied shows: %s", out)
	}
	if code != 1 || !strings.Contains(out, "tcp: connect 10.0.0.1:5432: by 10.0.0.0/8:5432\n") || !strings.Contains(out, "imports: import numpy: by numpy\n") {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if out, errs, code := psiPolicy(t, "", "diff", path+"#job", path+"#base", "--var=WORKDIR=/srv/w"); code != 0 || out != "" {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if out, errs, code := psiPolicy(t, "", "diff", "--json", "defaults", "ml-inference"); code != 1 || !strings.Contains(out, `"example": "256MiB → 4GiB"`) {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if _, errs, code := psiPolicy(t, "", "diff", "defaults", "defaults", "--var", "A=1"); code != 2 || !strings.Contains(errs, "neither policy uses it") {
		t.Errorf("code %d: %s", code, errs)
	}
}

func TestPolicyCompile(t *testing.T) {
	path := file(t, "jobs.yml", jobs)
	out, errs, code := psiPolicy(t, "", "compile", path+"#job", "--var", "WORKDIR=/srv/w")
	if code != 0 || !strings.Contains(out, "fs       3 rules: ") || !strings.Contains(out, "api.example.com") || !strings.Contains(out, "imports  3 modules") {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	out, _, code = psiPolicy(t, "", "compile", path+"#base", "--json", "--table")
	var c compiledPolicy
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 || len(c.FS.ClassOf) != 256 || 2*len(c.FS.Table) != c.FS.Bytes || *c.Imports != 2 {
		t.Errorf("code %d: %v: %.300s", code, err, out)
	}
	many := "fs:\n"
	for _, c := range "abcdefghijklmnopqrst" {
		many += "- /srv/*" + strings.Repeat(string(c), 3) + "*\n"
	}
	if _, errs, code := psiPolicy(t, "", "compile", file(t, "many.yml", many)); code != 1 || !strings.Contains(errs, "/srv/*") {
		t.Errorf("code %d: %s", code, errs)
	}
}

func TestPolicyFmt(t *testing.T) {
	ugly := "# head\nversion: 1\nsandboxes:\n    a:   # the first\n        mem:   64MiB\n        extends: b\n    b: {}\n"
	const pretty = "# head\nversion: 1\n\nsandboxes:\n  a: # the first\n    extends: b\n    mem: 64MiB\n\n  b: {}\n"
	path := file(t, "a.yml", ugly)
	if out, errs, code := psiPolicy(t, "", "fmt", path, "--check"); code != 1 || out != path+"\n" {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if out, errs, code := psiPolicy(t, "", "fmt", path); code != 0 || out != path+"\n" {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != pretty {
		t.Errorf("%v:\n%s", err, data)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if out, errs, code := psiPolicy(t, "", "fmt", "--check", path); code != 0 || out != "" {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if out, errs, code := psiPolicy(t, ugly, "fmt", "-"); code != 0 || out != pretty {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	if _, errs, code := psiPolicy(t, "", "fmt", file(t, "bad.yml", "pids: 0")); code != 2 || !strings.Contains(errs, "1 | pids: 0") {
		t.Errorf("code %d: %s", code, errs)
	}
	if _, errs, code := psiPolicy(t, "", "fmt", "defaults"); code != 2 || !strings.Contains(errs, "is the name of a policy") {
		t.Errorf("code %d: %s", code, errs)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v: left %v", err, entries)
	}
}

func TestPolicyUsage(t *testing.T) {
	for _, test := range []struct {
		want string
		code int
		args []string
	}{
		{"usage: psi-runtime policy explain [options] NAME|FILE[#SANDBOX] fs:/PATH", 2, []string{"explain", "defaults"}},
		{"usage: psi-runtime policy show [options] NAME", 1, []string{"show"}},
		{"flag provided but not defined: -jason: see psi-runtime policy check --help", 2, []string{"check", "defaults", "--jason"}},
		{"choose one", 2, []string{"check", "defaults", "--json", "--sarif"}},
		{"- stands for the policy and for the event", 2, []string{"explain", "-", "-"}},
	} {
		if _, errs, code := psiPolicy(t, "", test.args...); code != test.code || !strings.Contains(errs, test.want) {
			t.Errorf("%v: code %d: %s", test.args, code, errs)
		}
	}
}
