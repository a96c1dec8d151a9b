package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseEverything(t *testing.T) {
	const inYAML = `# a comment
mem: 1.5GiB
cpu: 0.5
cpu_ms: 10000
wall_ms: 60000
pids: 32
open_files: 128
tmp: 64MB
message: 1048576
output: 0
fs:
  - /srv/data/*.parquet
  - read: "/srv/data/**/*.csv"
  - {write: /srv/out/**}
  - deny: /srv/data/private/**
tcp: ["127.0.0.1:9200", '[::1]:80', 10.0.0.0/8:5432]
imports: [math, xml.etree]
allow_degraded: true
`
	const inJSON = `{"mem": 1610612736, "cpu": 5e-1, "cpu_ms": 10000, "wall_ms": 60000, "pids": 32, "open_files": 128,
	"tmp": "64MB", "message": "1MiB", "output": 0, "fs": ["\/srv\/data\/*.parquet", {"read": "/srv/data/**/*.csv"},
	{"write": "/srv/out/**"}, {"deny": "/srv/data/private/**"}], "tcp": ["127.0.0.1:9200", "[0::1]:80", "10.0.0.0/8:5432"],
	"imports": ["xml.etree", "math", "math"], "read_only": false, "allow_degraded": true}`
	p := must(t)(Parse([]byte(inYAML), "policy.yml"))
	q := must(t)(Parse([]byte(inJSON), "policy.json"))
	if p.Digest() != q.Digest() {
		t.Errorf("YAML and JSON differ:\n%s\n%s", p.Canonical(), q.Canonical())
	}
	want := Limits{Mem: 3 << 29, CPU: 0.5, CPUTime: 10 * time.Second, Wall: time.Minute, PIDs: 32, OpenFiles: 128,
		Tmp: 64e6, Message: mib, Output: 0}
	if p.Limits() != want {
		t.Errorf("limits are %+v", p.Limits())
	}
	if !p.AllowDegraded() || len(p.FS()) != 4 || p.FS()[2] != (FSRule{Write, "/srv/out/**"}) || len(p.TCP()) != 3 {
		t.Errorf("the policy is %s", p.Canonical())
	}
}

func TestParseForms(t *testing.T) {
	for text, want := range map[string]string{
		"{}":                                     "",
		"--- {}\n...\n":                          "",
		"\uFEFF{}":                               "",
		"\uFEFFfs: []":                           "",
		"fs: []":                                 "",
		"{fs: [], tcp: [], }":                    "",
		`{"fs":["\u002fsrv\u002f\ud83d\ude00"]}`: `"fs":[{"read":"/srv/😀"}]`,
		"{\t\"pids\":\t2}":                       `"pids":2`,
		"imports: []":                            `"imports":[]`,
		"pids: 2 # comment":                      `"pids":2`,
		"\"pids\": 2":                            `"pids":2`,
		"cpu: 2":                                 `"cpu":2,`,
		"cpu: 1.50":                              `"cpu":1.5,`,
		"fs: [&a /srv/a, *a]":                    `"fs":[{"read":"/srv/a"}]`,
		"fs: &l [/srv/a]":                        `"fs":[{"read":"/srv/a"}]`,
		"fs:\n- |-\n  /srv/a\n":                  `"fs":[{"read":"/srv/a"}]`,
		"fs:\n- >-\n  /srv/a\n  b\n":             `"fs":[{"read":"/srv/a b"}]`,
		"fs: [\"/srv/\\x41\"]":                   `"fs":[{"read":"/srv/A"}]`,
		"mem: '64MiB'":                           `"mem":67108864`,
		"imports: [on, off, y]":                  `"imports":["off","on","y"]`,
	} {
		p, err := Parse([]byte(text), "p.yml")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if want == "" && string(p.Canonical()) != string(must(t)(Parse(Defaults().Canonical(), "")).Canonical()) ||
			!strings.Contains(string(p.Canonical()), want) {
			t.Errorf("%s: %s, want …%s…", text, p.Canonical(), want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", `p.yml: the document is empty: write {} for the default policy`},
		{" \n# only a comment\n", `p.yml: the document is empty: write {} for the default policy`},
		{"null", `p.yml: the document is empty: write {} for the default policy`},
		{"defaults", `p.yml:1:1: the document is text, not a policy: write keys and values, such as mem: 256MiB`},
		{"- mem", `p.yml:1:1: the document is a list, not a policy: write keys and values, such as mem: 256MiB`},
		{"[1]", `p.yml:1:1: the document is a list, not a policy: write keys and values, such as mem: 256MiB`},
		{"{}\n---\n{}", `p.yml: is not valid YAML: it holds a second document`},
		{"a: b: c", `p.yml: is not valid YAML: mapping values are not allowed in this context`},
		{"fs: [", `p.yml:1: is not valid YAML: did not find expected node content`},
		{"pids: 1\nmem: \xff", `p.yml:2:6: the document is not UTF-8 text: save it as UTF-8; match file names that are not with ? or *`},
		{"pids: 1\npids: 2", `p.yml:2:1: "pids": is there twice: keep this or the one in line 1, column 1`},
		{"pids: 1\n<<: {mem: 64MiB}", `p.yml:2:1: "<<": merge keys are not supported: write the keys out`},
		{"1: 2", `p.yml:1:1: "1": is a number where a key is expected: see the keys in docs/policy.md`},
		{"? [a]\n: 1", `p.yml:1:3: is a list where a key is expected: see the keys in docs/policy.md`},
		{"mem: !!str 1", `p.yml:1:6: has the tag "!!str", which is not supported: remove it; quote a value to make it text`},
		{"mem: !size 1", `p.yml:1:6: has the tag "!size", which is not supported: remove it; quote a value to make it text`},

		{"memory: 1GiB", `p.yml:1:1: "memory": is not a key of a policy: the keys are read_only, allow_degraded, cpu, fs, tcp, udp, expose, imports, ` +
			`mem, cpu_ms, wall_ms, pids, open_files, tmp, message, output, net_conns, net_rate, net_bytes, seccomp, isolation, preload (did you mean "mem"?)`},
		{"pids: 1\nimport: [a]", `(did you mean "imports"?)`},
		{"Mem: 1GiB", `(did you mean "mem"?)`},
		{"cpums: 1", `(did you mean "cpu_ms"?)`},
		{"extends: base", `p.yml:1:1: "extends": is not a key of a policy`},

		{"mem: 256", `p.yml:1:6: mem: "256": out of range: write a size from 8MiB to 1048576GiB`},
		{"mem: '268435456'", `p.yml:1:6: mem: "268435456": has no unit`},
		{"mem: 256 MiB", `p.yml:1:6: mem: "256 MiB": unknown unit " MiB": write a number and B, kB, MB, GB (powers of 1000), ` +
			`KiB, MiB or GiB (powers of 1024), such as 256MiB (did you mean "MiB"?)`},
		{"mem: 0x10000000", `is not a whole decimal number`},
		{"mem: 1_000_000_000", `is not a whole decimal number`},
		{"mem: 0100000000", `is not a whole decimal number`},
		{"mem: 2.68e8", `is not a whole decimal number`},
		{"mem: -1", `is not a whole decimal number`},
		{"mem: 99999999999999999999", `is not a whole decimal number`},
		{"mem:", `p.yml:1:5: mem: is nothing: write a size such as 64MiB, or a number of bytes`},
		{"mem: [1]", `p.yml:1:6: mem: is a list: write a size such as 64MiB, or a number of bytes`},
		{"mem: 2001-01-01", `p.yml:1:6: mem: "2001-01-01": is a value of another type: write a size such as 64MiB, or a number of bytes`},
		{"pids: 1.5", `p.yml:1:7: pids: "1.5": is not a whole decimal number: write a whole number without quotes, such as 10`},
		{"pids: '5'", `p.yml:1:7: pids: "5": is text: write a whole number without quotes, such as 10`},
		{"pids: 0", `p.yml:1:7: pids: "0": out of range: write a number from 1 to 4194304`},
		{"pids: true", `pids: "true": is true or false: write a whole number`},
		{"cpu: '1'", `p.yml:1:6: cpu: "1": is text: write a number of processors without quotes, such as 0.5`},
		{"cpu: .nan", `cpu: ".nan": is not a decimal number`},
		{"cpu: .inf", `cpu: ".inf": is not a decimal number`},
		{"cpu: 0x1", `cpu: "0x1": is not a decimal number`},
		{"cpu: 1e999", `p.yml:1:6: cpu: "1e999": is text`},
		{`{"cpu": 1e999}`, `p.yml:1:9: cpu: "1e999": is not a decimal number`},
		{"cpu: 0", `cpu: "0": out of range: write a number of processors from 0.01 to 1024, such as 0.5`},
		{"cpu: -1", `cpu: "-1": out of range`},
		{"cpu: 2000", `cpu: "2000": out of range`},
		{"cpu_ms: 10s", `cpu_ms: "10s": is text: write a whole number without quotes, such as 10`},
		{"allow_degraded: yes", `p.yml:1:17: allow_degraded: "yes": is not true or false: write true or false`},
		{"allow_degraded: True", `is not true or false`},
		{"read_only:", `p.yml:1:11: read_only: is not true or false: write true or false`},

		{"fs: /srv/data", `p.yml:1:5: fs: "/srv/data": is text: write a list of patterns`},
		{"fs:", `p.yml:1:4: fs: is nothing: write a list of patterns`},
		{"fs: [null]", `p.yml:1:6: fs: "null": is nothing: write a pattern, or one of {read: pattern}`},
		{"fs:\n- srv", `p.yml:2:3: fs: "srv": is not absolute: begin it with /, such as /srv/data/*.csv`},
		{"fs:\n- {}", `p.yml:2:3: fs: one entry has 0 modes: write a pattern, or one of`},
		{"fs: [{read: /srv/a, write: /srv/b}]", `p.yml:1:6: fs: one entry has 2 modes`},
		{"fs: [{allow: /srv/a}]", `p.yml:1:7: fs: "allow": is not a mode of an fs rule: write read, write or deny`},
		{"fs: [{reed: /srv/a}]", `(did you mean "read"?)`},
		{"fs: [{read: [/srv/a]}]", `p.yml:1:13: fs: is a list: write one pattern as text, such as /srv/data/**`},
		{"fs: [{read: /etc}]", `p.yml:1:13: fs: "/etc": no policy may open /etc: it is a directory of the guest's own root: ` +
			`name a directory below it, such as /usr/share/common-licenses`},
		{"fs: [{write: /srv/out}]\nread_only: true", `p.yml:1:14: fs: "/srv/out": no rule of a policy with read_only: true may write`},
		{"fs: [~/data]", `is not absolute`},
		{"fs: [~]", `p.yml:1:6: fs: "~": is nothing`},
		{"tcp: 127.0.0.1:80", `p.yml:1:6: tcp: "127.0.0.1:80": is text: write a list of endpoints`},
		{"tcp: [80]", `p.yml:1:7: tcp: "80": is a number: write "host:port" in quotes`},
		{"tcp:\n- 127.0.0.1:80\n- '*.org:443'",
			`p.yml:3:3: tcp: "*.org:443": has a wildcard that covers a whole top-level domain or every name: write *.example.org`},
		{"tcp: ['10.0.0.1:90-80']", `has a range of ports that does not rise: "90-80": write the lower port first`},
		{"imports: math", `p.yml:1:10: imports: "math": is text: write a list of modules`},
		{"imports:", `p.yml:1:9: imports: is nothing: write a list of modules`},
		{"imports: [1]", `p.yml:1:11: imports: "1": is a number: write the name of a module`},
		{"imports: [numpy.*]", `p.yml:1:11: imports: "numpy.*": has a wildcard, which is not supported: a package's name covers the modules in it`},
		{`{"imports": null}`, `p.yml:1:13: imports: is nothing: write a list of modules`},
		{"{\n \"é\": 1,\n \"pids\": \"x\"\n}", `p.yml:2:2: "é": is not a key of a policy`},
		{"{\n \"tcp\": [\"é:1\", 5]}", `p.yml:2:10: tcp: "é:1": has a name that is not ASCII`},
		{"{\n \"imports\": [\"a\", {\"b\" : [] }]}", `p.yml:2:19: imports: is a set of keys and values: write the name of a module`},
		{`{"pids": 1, "pids": 1}`, `p.yml:1:13: "pids": is there twice: keep this or the one in line 1, column 2`},
		{`{"fs": ["/srv/\ud800"]}`, `p.yml:1:9: fs: "/srv/�": is not UTF-8 text`},
		{`{"mem": 1e9}`, `p.yml:1:9: mem: "1e9": is not a whole decimal number`},
	} {
		p, err := Parse([]byte(test.text), "p.yml")
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: %v, parsed to %s", test.text, err, p.Canonical())
			continue
		}
		if !strings.Contains(err.Error(), test.want) || strings.HasPrefix(test.want, "p.yml") && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%q:\n got %v\nwant %s", test.text, err, test.want)
		}
	}
}

func TestParseJSONErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                 `p.json: the document is empty`,
		"mem: 1GiB":        `p.json:1:1: is not valid JSON: invalid character 'm' looking for beginning of value`,
		"{\"mem\": 1,":     `p.json:1:10: is not valid JSON: unexpected end of JSON input`,
		"{}{}":             `p.json:1:3: is not valid JSON: invalid character '{' after top-level value`,
		"{\n\"pids\": 01}": `p.json:2:10: is not valid JSON`,
	} {
		_, err := Parse([]byte(text), "p.json")
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestParseBombs gives Parse documents that are small and mean something huge,
// or are as large as they may be. Each is refused at once.
func TestParseBombs(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 30; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10))
	}
	deep := "fs: &d0 [x]\n"
	for i := 1; i < 100; i++ {
		deep += fmt.Sprintf("k%d: &d%d [*d%d]\n", i, i, i-1)
	}
	const many = maxDocument - 100
	for name, test := range map[string]struct{ text, want string }{
		"billion laughs":   {laughs, "more than 50000 values"},
		"alias chain":      {deep, "nested more than 16 deep"},
		"alias of itself":  {"fs: &a [*a]", "nested more than 16 deep"},
		"unknown alias":    {"fs: *a", "unknown anchor"},
		"one byte more":    {"#" + strings.Repeat("x", maxDocument), "larger than 1MiB"},
		"deep flow":        {"fs: " + strings.Repeat("[", 9000), "is not valid YAML"},
		"closed deep flow": {"fs: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "nested more than 16 deep"},
		"deeper flow":      {"fs: " + strings.Repeat("[", many), "exceeded max depth"},
		"deep JSON":        {`{"fs":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}", "nested more than 16 deep"},
		"deeper JSON":      {strings.Repeat("[", many/2) + strings.Repeat("]", many/2), "exceeded max depth"},
		"deep maps":        {strings.Repeat("{a: ", 9000) + strings.Repeat("}", 9000), "nested more than 16 deep"},
		"wide list":        {"fs: [" + strings.Repeat("1,", many/2) + "]", "more than 50000 values"},
		"wide JSON":        {`{"fs": [` + strings.Repeat("1,", many/2-10) + "1]}", "more than 50000 values"},
		"many keys":        {keys(40_000), "more than 50000 values"},
		"long key":         {strings.Repeat("k", many) + ": 1", "is not valid YAML"},
		"long JSON key":    {`{"` + strings.Repeat("k", many) + `": 1}`, "is not a key"},
		"long text":        {`mem: "` + strings.Repeat("m", many) + `"`, "is not a size"},
		"comments":         {strings.Repeat("# c\n", many/4), "is empty"},
		"comments inside":  {"fs:\n" + strings.Repeat("# c\n- /srv\n", many/11) + "x: 1", "more than 50000 values"},
		"anchors":          {"fs: [" + strings.Repeat("&a x,", many/5) + "]", "more than 50000 values"},
		"documents":        {strings.Repeat("--- {}\n", many/7), "second document"},
	} {
		start := time.Now()
		_, err := Parse([]byte(test.text), "bomb")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %.300v, want …%s…", name, err, test.want)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: a message of %d bytes", name, len(err.Error()))
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		} else {
			t.Logf("%s: %v", name, took)
		}
	}
}

func keys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d: 1\n", i)
	}
	return b.String()
}
