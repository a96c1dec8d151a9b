package policy

import (
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, path string
		want          bool
	}{
		{"/srv/data", "/srv/data", true},
		{"/srv/data", "/srv/data/x", false},
		{"/srv/data", "/srv/dat", false},
		{"/srv/data", "/srv", false},
		{"/", "/", true},
		{"/", "/a", false},
		{"/*", "/", false},
		{"/*", "/a", true},
		{"/*", "/a/b", false},
		{"/srv/*.csv", "/srv/a.csv", true},
		{"/srv/*.csv", "/srv/.csv", true},
		{"/srv/*.csv", "/srv/.hidden.csv", true},
		{"/srv/*.csv", "/srv/a/b.csv", false},
		{"/srv/*.csv", "/srv/a.csv.gz", false},
		{"/srv/a*b*c", "/srv/abbc", true},
		{"/srv/a*b*c", "/srv/acb", false},
		{"/srv/*a*", "/srv/a", true},
		{"/srv/?", "/srv/x", true},
		{"/srv/?", "/srv/", false},
		{"/srv/?", "/srv/xy", false},
		{"/srv/?", "/srv/é", false},
		{"/srv/??", "/srv/é", true},
		{"/srv/?", "/srv/\n", true},
		{"/srv/?", "/srv/\xff", true},
		{"/srv/a?b", "/srv/a/b", false},
		{"/srv/**", "/srv", true},
		{"/srv/**", "/srv/a/b/c", true},
		{"/srv/**", "/srvx", false},
		{"/srv/**/*.csv", "/srv/a.csv", true},
		{"/srv/**/*.csv", "/srv/a/b/c.csv", true},
		{"/srv/**/*.csv", "/srv/a/b/c.csv/d", false},
		{"/srv/**/x/**/y", "/srv/x/y", true},
		{"/srv/**/x/**/y", "/srv/a/x/b/x/c/y", true},
		{"/srv/**/x/**/y", "/srv/a/b/y", false},
		{"/srv/**/a/b", "/srv/a/a/b", true},
		{"/srv/**/a/b", "/srv/a/b/a", false},
		{"/**", "/", true},
		{"/**", "/a/b", true},
		{"/**/**/a", "/a", true},
		{"/srv/[ab]", "/srv/a", true},
		{"/srv/[ab]", "/srv/c", false},
		{"/srv/[a-c]x", "/srv/bx", true},
		{"/srv/[!a-c]x", "/srv/bx", false},
		{"/srv/[!a-c]x", "/srv/dx", true},
		{"/srv/[^a-c]x", "/srv/dx", true},
		{"/srv/[]]", "/srv/]", true},
		{"/srv/[!]]", "/srv/]", false},
		{"/srv/[!]]", "/srv/x", true},
		{"/srv/[-a]", "/srv/-", true},
		{"/srv/[a-]", "/srv/-", true},
		{"/srv/[a-]", "/srv/b", false},
		{"/srv/[*]", "/srv/*", true},
		{"/srv/[*]", "/srv/x", false},
		{"/srv/[?]", "/srv/x", false},
		{"/srv/[[]x", "/srv/[x", true},
		{"/srv/x[a]*[b]", "/srv/xaaab", true},
		{"/srv/[!a]", "/srv//", false},
		{"/srv/a[!x]b", "/srv/a/b", false},
		{`/srv/\*`, `/srv/\x`, true}, // a backslash is a byte like others
		{`/srv/\*`, `/srv/x`, false},
		{"/srv/[a", "/srv/[a", false},
		{"/srv/[a", "/srv/a", false},
		{"/srv/[", "/srv/[", false},
		{"/srv/[!", "/srv/!", false},
		{"/srv/]", "/srv/]", true},
		{"srv", "/srv", false},
		{"/srv", "srv", false},
		{"", "", false},
		{"/srv/{a,b}", "/srv/a", false},
		{"/srv/{a,b}", "/srv/{a,b}", true},
	} {
		if got := Match(test.pattern, test.path); got != test.want {
			t.Errorf("Match(%q, %q) = %v, want %v", test.pattern, test.path, got, test.want)
		}
	}
}

// TestMatchTime gives Match what makes a matcher that tries every way run for
// longer than the universe.
func TestMatchTime(t *testing.T) {
	long := strings.Repeat("a", 4000)
	for _, test := range []struct{ pattern, path string }{
		{"/" + strings.Repeat("*a", 2000) + "b", "/" + long},
		{strings.Repeat("/**/a", 800) + "/b", strings.Repeat("/a", 2000)},
		{strings.Repeat("/**/*a*", 500) + "/b", strings.Repeat("/aa", 1300)},
		{strings.Repeat("/**", 1300) + "/b", strings.Repeat("/a", 2000)},
		{"/" + strings.Repeat("*[!b]", 800) + "b", "/" + long},
		{"/" + strings.Repeat("[", 4000), "/" + long},
		{"/*" + strings.Repeat("[a", 2000), "/" + long},
	} {
		start := time.Now()
		if Match(test.pattern, test.path) {
			t.Errorf("%.20q… matches %.20q…", test.pattern, test.path)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%.20q… on %.20q… took %v", test.pattern, test.path, took)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { Match("/srv/**/[a-z]*.csv", "/srv/data/of/job/table.csv") }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
}

func TestLiteralDir(t *testing.T) {
	for pattern, want := range map[string]string{
		"/srv/data":          "/srv/data",
		"/srv/data/*.csv":    "/srv/data",
		"/srv/data/**":       "/srv/data",
		"/srv/da*a/x":        "/srv",
		"/srv/data/[ab]/x":   "/srv/data",
		"/srv/data/x?":       "/srv/data",
		"/*":                 "/",
		"/s*/data":           "/",
		"/**":                "/",
		"/":                  "/",
		"/srv/{a,b}/\\x/*/y": "/srv/{a,b}/\\x",
	} {
		if got := LiteralDir(pattern); got != want {
			t.Errorf("LiteralDir(%q) = %q, want %q", pattern, got, want)
		}
	}
}

func TestCheckPattern(t *testing.T) {
	for _, pattern := range []string{
		"/srv", "/srv/**", "/srv/**/*.csv", "/srv/...", "/srv/a b\n", "/srv/[[]", "/srv/[]]", "/srv/[!]a-z-]", "/srv/é",
		"/srv/*?[a]", "/srv/]", "/" + strings.Repeat("a", maxPattern-1),
	} {
		if err := checkPattern(pattern); err != nil {
			t.Errorf("%q: %v", pattern, err)
		}
	}
	for pattern, rule := range map[string]string{
		"":                                    "an empty pattern",
		"srv":                                 "is not absolute",
		"~/x":                                 "is not absolute",
		"./x":                                 "is not absolute",
		"/srv/":                               "has an empty component",
		"//srv":                               "has an empty component",
		"/srv//x":                             "has an empty component",
		"/srv/../etc":                         `has a ".." component`,
		"/srv/.":                              `has a "." component`,
		"/srv/\x00":                           "holds a NUL byte",
		"/srv/\xff":                           "is not UTF-8 text",
		"/srv/\uFFFD":                         "is not UTF-8 text",
		"/srv/a**":                            `has "**" beside other characters`,
		"/srv/***":                            `has "**" beside other characters`,
		"/srv/[a":                             `has a "[" that nothing closes`,
		"/srv/[a/b]":                          `has a "[" that nothing closes`,
		"/srv/[]":                             `has a "[" that nothing closes`,
		"/srv/[!]":                            `has a "[" that nothing closes`,
		"/srv/[z-a]":                          `has the empty range "z-a"`,
		"/srv/[é]":                            "has a class with a character that is not ASCII",
		"/srv/[a-é]":                          "has a class with a character that is not ASCII",
		"/srv/[[:alpha:]]x":                   "has a named class",
		"/" + strings.Repeat("a", maxPattern): "is longer than 4095 bytes",
	} {
		err := checkPattern(pattern)
		if err == nil {
			t.Errorf("%.40q is accepted", pattern)
			continue
		}
		if err.Rule != rule || err.Value != pattern || pattern != "" && err.WayOut == "" {
			t.Errorf("%.40q: %#v, want rule %q", pattern, err, rule)
		}
	}
}
