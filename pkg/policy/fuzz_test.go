package policy

import (
	"bytes"
	"errors"
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
