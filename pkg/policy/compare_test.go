package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func compare(t *testing.T, a, b string) string {
	t.Helper()
	found, err := Compare(must(t)(Parse([]byte(a), "a.yml")), must(t)(Parse([]byte(b), "b.yml")))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, d := range found {
		lines = append(lines, d.String())
	}
	return strings.Join(lines, "\n")
}

func TestCompare(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"{}", "{}", ""},
		{"{}", "fs: [{deny: /srv}]", ""},
		{"{}", "fs: [/srv/a]", "fs: read /srv/a: by read /srv/a"},
		{"fs: [/srv/a]", "fs: [/srv/a/**, '/srv/a/*/x']", ""},
		{"fs: ['/srv/*']", "fs: ['/srv/?*', '/srv/[a-z]']", ""},
		{"fs: ['/srv/*.csv']", "fs: ['/srv/**/*.csv']", "fs: read /srv/a/.csv: by read /srv/**/*.csv"},
		{"fs: [/srv/a]", "fs: [{write: /srv/a}]", "fs: write /srv/a: by write /srv/a"},
		{"fs: [{write: /srv/a}]", "fs: [/srv/a]", ""},
		{"fs: [/srv, {deny: /srv/x}]", "fs: [/srv, {deny: /srv/x/y}]", "fs: read /srv/x: by read /srv"},
		{"fs: [/srv/a, /srv/b]", "fs: ['/srv/[a-c]']", "fs: read /srv/c: by read /srv/[a-c]"},
		{"fs: ['/srv/?', '/srv/??']", "fs: ['/srv/*']", "fs: read /srv/aaa: by read /srv/*"},
		{"fs: ['/srv/[!.]*']", "fs: ['/srv/*']", "fs: read /srv/.a: by read /srv/*"}, // not "/srv/."
		{"fs: ['/srv/[!.]*', '/srv/.[!.]*']", "fs: ['/srv/*']", "fs: read /srv/..a: by read /srv/*"},
		{"{}", "tcp: ['a.b:1', '10.0.0.0/8:2']", "tcp: connect a.b:1: by a.b:1\ntcp: connect 10.0.0.1:2: by 10.0.0.0/8:2"},
		{"tcp: ['10.0.0.0/8:2']", "tcp: ['10.1.0.0/16:2', '10.0.0.0/9:2', '10.0.0.1:2']", ""},
		{"tcp: ['10.0.0.0/9:2', '10.128.0.0/9:2']", "tcp: ['10.0.0.0/8:2']", ""},
		{"tcp: ['10.0.0.0/8:2']", "tcp: ['10.0.0.0/7:2']", "tcp: connect 11.0.0.1:2: by 10.0.0.0/7:2"},
		{"tcp: ['10.0.0.0/8:2']", "tcp: ['10.0.0.0/7:2', {deny: '11.0.0.0/8:2'}]", ""},
		{"tcp: ['10.0.0.0/8:2', {deny: '10.9.0.0/16:2'}]", "tcp: ['10.0.0.0/8:2']", "tcp: connect 10.9.0.1:2: by 10.0.0.0/8:2"},
		// A wide block does not cover what it merely happens to contain.
		{"tcp: ['0.0.0.0/0:1']", "tcp: ['127.0.0.1:1']", "tcp: connect 127.0.0.1:1: by 127.0.0.1:1"},
		{"tcp: ['127.0.0.0/8:1']", "tcp: ['0.0.0.0/0:1', {deny: '0.0.0.0/1:1'}, {deny: '128.0.0.0/1:1'}]", ""},
		{"tcp: ['a.b:1']", "tcp: ['a.b:1', {deny: 'a.b:1'}]", ""},
		{"imports: [xml, a]", "imports: [xml.etree, a.b]", ""},
		{"imports: [xml.etree]", "imports: [xml, os]", "imports: import os: by os\nimports: import xml: by xml"},
		{"imports: []", "{}", "imports: import every module: by no imports key"},
		{"{}", "imports: [a]", ""},
		{"cpu_ms: 5", "cpu_ms: 0\nwall_ms: 5", "cpu_ms: more 5 → 0"},
		{"tmp: 0\nmem: 64MiB\ncpu: 0.5", "mem: 1GiB\npids: 1", "cpu: more 0.5 → 1\nmem: more 64MiB → 1GiB\ntmp: more 0 → 64MiB"},
		{"{}", "allow_degraded: true", "allow_degraded: more false → true"},
	} {
		if got := compare(t, test.a, test.b); got != test.want {
			t.Errorf("%s → %s:\n got %s\nwant %s", test.a, test.b, got, test.want)
		}
	}
}

// randomRules makes rules over a small alphabet, so that they meet.
func randomRules(r *rand.Rand) []FSRule {
	parts := []string{"a", "b", "ab", "*", "?", "[ab]", "[!a]", "**", "a*", "*b", "?b*", "c"}
	var rules []FSRule
	for range 1 + r.IntN(4) {
		pattern := "/srv"
		for range 1 + r.IntN(3) {
			pattern += "/" + parts[r.IntN(len(parts))]
		}
		rules = append(rules, FSRule{[]FSMode{Read, Read, Write, Deny}[r.IntN(4)], pattern})
	}
	return rules
}

func randomPath(r *rand.Rand) string {
	path := "/srv"
	for range r.IntN(4) {
		name := ""
		for range 1 + r.IntN(3) {
			name += string("abc."[r.IntN(4)])
		}
		if name == "." || name == ".." {
			name = "a"
		}
		path += "/" + name
	}
	return path
}

// TestPropertyCompare looks at random policies path by path: no difference means
// that none of many paths shows one, and each example is one.
func TestPropertyCompare(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	different := 0
	for range 1500 {
		a, b := Policy{fs: randomRules(r)}, Policy{fs: randomRules(r)}
		found, err := Compare(a, b)
		if err != nil {
			t.Fatal(err)
		}
		gains := func(path string) Access {
			before, _ := DecideFS(a.fs, path)
			after, _ := DecideFS(b.fs, path)
			return after &^ before & (MayRead | MayWrite)
		}
		for _, d := range found {
			different++
			if !isClean(d.Example) || gains(d.Example) == 0 {
				t.Fatalf("%v and %v: %v is no difference", a.fs, b.fs, d)
			}
		}
		for range 200 {
			if path := randomPath(r); gains(path) != 0 && len(found) == 0 {
				t.Fatalf("%v and %v: %s is not found", a.fs, b.fs, path)
			}
		}
	}
	if different < 300 {
		t.Errorf("only %d differences", different)
	}
}

func TestCompareLarge(t *testing.T) {
	a, b := Policy{fs: mixedRules(1000)}, Policy{fs: mixedRules(1001)}
	found, err := Compare(a, b)
	if err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	var many []FSRule
	for i := range 100 {
		many = append(many, FSRule{Read, fmt.Sprintf("/data/*k%d*", i)})
	}
	if _, err := Compare(a, Policy{fs: many}); err == nil || !strings.Contains(err.Error(), "comparing with the second policy: fs: ") {
		t.Errorf("got %v", err)
	}
}
