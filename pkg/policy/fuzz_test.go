package policy

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzParse feeds documents. Whatever is accepted must keep every promise of the
// package; whatever is refused must be an *Error that says something.
func FuzzParse(f *testing.F) {
	for _, name := range Names() {
		data, err := builtinData(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"fs": ["/srv/a", {"write": "/srv/b/**"}], "tcp": ["[::1]:80"], "imports": [], "mem": "1.5GiB"}`))
	f.Add([]byte("tcp: ['10.0.0.0/8:8001-8100']\nexpose: [8000, 9000]"))
	f.Add([]byte("fs: &a [/srv/a]\ntcp: []\nimports: *a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data, "fuzz.yml")
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Rule == "" || e.Source == "" {
				t.Fatalf("%q: %#v", data, err)
			}
			if len(err.Error()) > 2000 {
				t.Fatalf("a message of %d bytes", len(err.Error()))
			}
			return
		}
		canonical := p.Canonical()
		q, err := Parse(canonical, "canonical.json")
		if err != nil {
			t.Fatalf("%q has the canonical form %s: %v", data, canonical, err)
		}
		if !bytes.Equal(q.Canonical(), canonical) {
			t.Fatalf("%s becomes %s", canonical, q.Canonical())
		}
		if err := checkLimits(p.Limits()); err != nil {
			t.Fatal(err)
		}
		for _, r := range p.FS() {
			if err := r.check(); err != nil || r.Mode == Write && p.ReadOnly() {
				t.Fatalf("%v: %v", r, err)
			}
		}
		for _, port := range p.Expose() {
			if q, err := p.ExposePort(int(port)); err != nil || q.Digest() != p.Digest() {
				t.Fatalf("expose %d again: %v", port, err)
			}
			for _, e := range p.TCP() {
				if first, last := e.Ports(); !e.Deny && first <= port && port <= last {
					t.Fatalf("%d is exposed and %v is served there", port, e)
				}
			}
		}
		for _, e := range p.TCP() {
			if again, err := ParseEndpoint(e.String()); err != nil || again != e {
				t.Fatalf("%v: %v, %v", e, again, err)
			}
		}
	})
}

// FuzzMatch compares Match with a matcher that tries every way.
func FuzzMatch(f *testing.F) {
	for _, seed := range [][2]string{
		{"/srv/**/*.csv", "/srv/a/b.csv"}, {"/**/a/**/b", "/a/b/a/b"}, {"/[a-c][!x]*", "/by"}, {"/a*b*c", "/abbc"},
		{"/**", "/"}, {"/*", "/"}, {"/[]a]", "/]"}, {"/[a", "/[a"}, {"/?", "/é"}, {"/[!]-a]", "/b"}, {"/a[", "/a["},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		if len(pattern) > 24 || len(path) > 24 || !isClean(path) {
			return // the naive matcher needs exponential time; Match is defined for clean paths
		}
		want := false
		if strings.HasPrefix(pattern, "/") && brokenClass(pattern) == "" {
			want = naiveMatch(strings.Split(pattern[1:], "/"), split(path))
			if pattern == "/" {
				want = path == "/"
			}
		}
		if got := Match(pattern, path); got != want {
			t.Fatalf("Match(%q, %q) = %v, want %v", pattern, path, got, want)
		}
		if want && checkPattern(pattern) == nil {
			dir := LiteralDir(pattern)
			if path != dir && dir != "/" && !strings.HasPrefix(path, dir+"/") {
				t.Fatalf("%q matches %q outside of its literal directory %q", pattern, path, dir)
			}
		}
	})
}

func isClean(path string) bool {
	if path == "/" {
		return true
	}
	return strings.HasPrefix(path, "/") && !strings.HasSuffix(path, "/") && !strings.Contains(path, "//")
}

func split(path string) []string {
	if path == "/" {
		return nil
	}
	return strings.Split(path[1:], "/")
}

// naiveMatch is the definition in the comment of Match, spelled out.
func naiveMatch(pattern, path []string) bool {
	switch {
	case len(pattern) == 0:
		return len(path) == 0
	case pattern[0] == "**":
		return naiveMatch(pattern[1:], path) || len(path) > 0 && naiveMatch(pattern, path[1:])
	}
	return len(path) > 0 && naiveName(pattern[0], path[0]) && naiveMatch(pattern[1:], path[1:])
}

func naiveName(pattern, name string) bool {
	if pattern == "" {
		return name == ""
	}
	if pattern[0] == '*' {
		return naiveName(pattern[1:], name) || name != "" && naiveName(pattern, name[1:])
	}
	if name == "" {
		return false
	}
	switch pattern[0] {
	case '?':
		return naiveName(pattern[1:], name[1:])
	case '[':
		members, rest := naiveClass(pattern)
		return members[name[0]] && naiveName(rest, name[1:])
	}
	return pattern[0] == name[0] && naiveName(pattern[1:], name[1:])
}

// naiveClass spells out the members of a class that is not broken.
func naiveClass(pattern string) (members [256]bool, rest string) {
	inside := pattern[1:]
	negated := inside[0] == '!' || inside[0] == '^'
	if negated {
		inside = inside[1:]
	}
	end := 1 + strings.IndexByte(inside[1:], ']')
	set, rest := inside[:end], inside[end+1:]
	for set != "" {
		if len(set) >= 3 && set[1] == '-' {
			for c := int(set[0]); c <= int(set[2]); c++ {
				members[c] = true
			}
			set = set[3:]
			continue
		}
		members[set[0]] = true
		set = set[1:]
	}
	for c := range members {
		members[c] = members[c] != negated
	}
	return members, rest
}

// brokenClass returns the first component with a class that nothing closes.
func brokenClass(pattern string) string {
	for _, name := range strings.Split(pattern, "/") {
		for i := 0; i < len(name); i++ {
			if name[i] != '[' {
				continue
			}
			_, size := cutClass(name[i:])
			if size == 0 {
				return name
			}
			i += size - 1
		}
	}
	return ""
}

// FuzzEndpoint checks that an endpoint has one form.
func FuzzEndpoint(f *testing.F) {
	for _, seed := range []string{"127.0.0.1:80", "[::ffff:1.2.3.4]:80", "A.example.:443", "10.0.0.0/8:1", "[fd00::/8]:1", "*:1", "a:1-2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEndpoint(text)
		if err != nil {
			return
		}
		if again, err := ParseEndpoint(e.String()); err != nil || again != e {
			t.Fatalf("%q is %v, which is %v, %v", text, e, again, err)
		}
		if e.Port == 0 || strings.ContainsAny(e.Host, " *%\x00") || e.Host != strings.ToLower(e.Host) {
			t.Fatalf("%q gives %#v", text, e)
		}
		if prefix, ok := e.Prefix(); ok && (prefix.Addr().Is4In6() || prefix.Masked() != prefix) {
			t.Fatalf("%q gives %v", text, prefix)
		}
	})
}

// FuzzAutomaton compares the automaton of two rules with the reference.
func FuzzAutomaton(f *testing.F) {
	for _, seed := range [][3]string{
		{"/srv/**/*.csv", "/srv/a*", "/srv/a/b.csv"}, {"/**/a/**/b", "/**", "/"}, {"/[a-c][!x]*", "/b?", "/by"},
		{"/a*b*c", "/a/**/**", "/abbc"}, {"/*", "/*/*", "/"}, {"/[]a]", "/[!]-a]", "/]"}, {"/?", "/\xc3?", "/é"},
		{"/", "/**/x/y", "/x/y/z"}, {"/a", "/a/b", "/a/b/c"}, {"/**/*", "/*?*", "/a"}, {"/***", "/[*]", "/*"}, {"/a/**", "/a/", "/a\x00"},
	} {
		f.Add(seed[0], seed[1], uint8(0), seed[2])
		f.Add(seed[1], seed[0], uint8(7), seed[2])
	}
	f.Fuzz(func(t *testing.T, one, two string, modes uint8, path string) {
		if checkPattern(one) != nil || checkPattern(two) != nil || len(one)+len(two) > 64 || !isClean(path) {
			return
		}
		kinds := []FSMode{Read, Write, Deny}
		rules := []FSRule{{kinds[modes%3], one}, {kinds[modes/3%3], two}}
		a, err := compileGlobs(rules, plainMeanings(rules))
		if err != nil {
			t.Fatalf("%v: %v", rules, err)
		}
		want, _ := DecideFS(rules, path)
		if got := a.Decide(path); got != want {
			t.Fatalf("%v: %q is %v, want %v", rules, path, got, want)
		}
		// Whatever the path, a kernel program must not leave the table.
		for s := range a.States() {
			for class := range a.Width - 1 {
				if int(a.Table[s*a.Width+class]) >= a.States() {
					t.Fatalf("%v: state %d leads to %d", rules, s, a.Table[s*a.Width+class])
				}
			}
		}
		swapped, err := compileGlobs([]FSRule{rules[1], rules[0]}, plainMeanings([]FSRule{rules[1], rules[0]}))
		if err != nil || !reflect.DeepEqual(a, swapped) {
			t.Fatalf("%v: depends on the order", rules)
		}
	})
}

// FuzzDocument feeds documents with several sandboxes. Whatever is accepted
// resolves, formats and compares with itself; whatever is refused says where.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(family), "WORKDIR", "/srv/x")
	f.Add([]byte("version: 1.0\nsandboxes:\n  a: {net: [{connect: 'a:1'}], fs: [{allow: /tmp/**}]}"), "", "")
	f.Add([]byte("fs: ['${W}/a', {write: '/srv/${W}x'}] # c\n"), "W", "/srv")
	f.Add([]byte("tcp: ['0.0.0.0/0:1', {deny: '10.0.0.0/8:1'}]"), "", "")
	f.Add([]byte("version: 1\ndefaults: {fs: [/srv]}\n# c\nsandboxes: {a: {extends: b}, b: {}}"), "", "")
	f.Fuzz(func(t *testing.T, data []byte, name, value string) {
		d, errs := ReadDocument(data, "fuzz.yml")
		for _, e := range errs {
			if e.Rule == "" || e.Source == "" || len(e.Error()) > 4000 || len(e.Excerpt()) > 2000 {
				t.Fatalf("%q: %#v", data, e)
			}
		}
		if d == nil {
			return
		}
		for _, sandbox := range append(d.Names(), "") {
			e, err := d.Resolve(Choice{Sandbox: sandbox, Variables: map[string]string{name: value}})
			if err != nil {
				e, err = d.Resolve(Choice{Sandbox: sandbox})
			}
			if err != nil {
				continue
			}
			again, err := Parse(e.Policy.Canonical(), "canonical.json")
			if err != nil || again.Digest() != e.Policy.Digest() {
				t.Fatalf("%q: %s parses to %v, %s", data, e.Policy.Canonical(), err, again.Canonical())
			}
			if more, err := Compare(e.Policy, again); err == nil && len(more) > 0 {
				t.Fatalf("%q permits more than itself: %v", data, more)
			}
		}
		out, err := Format(data, "fuzz.yml")
		if err != nil {
			return // a comment that would be lost
		}
		if again, err := Format(out, "fuzz.yml"); err != nil {
			t.Fatalf("%q is formatted to %q: %v", data, out, err)
		} else if twice, err := Format(again, "fuzz.yml"); err != nil || !bytes.Equal(again, twice) {
			t.Fatalf("%q is formatted to %q, then %q: %v", data, again, twice, err)
		}
	})
}
