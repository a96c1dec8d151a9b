package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func automaton(t testing.TB, rules []FSRule) *Automaton {
	t.Helper()
	a, err := CompileGlobs(rules)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAutomaton(t *testing.T) {
	rules := []FSRule{
		{Read, "/srv/data"}, {Read, "/srv/csv/**/*.csv"}, {Write, "/srv/out/**"}, {Deny, "/srv/out/keep*"},
		{Read, "/srv/[a-c]?/x"}, {Read, "/srv/*/y*z"}, {Write, "/srv/data/tmp"}, {Deny, "/srv/**/.git"},
	}
	a := automaton(t, rules)
	for path, want := range map[string]Access{
		"/": 0, "/srv": 0, "/srv/data": MayRead, "/srv/data/a/b": MayRead, "/srv/datax": 0,
		"/srv/csv": 0, "/srv/csv/a.csv": MayRead, "/srv/csv/a/b/c.csv": MayRead, "/srv/csv/a.csvx": 0, "/srv/csv/.csv": MayRead,
		"/srv/out": MayRead | MayWrite, "/srv/out/a": MayRead | MayWrite, "/srv/out/keep": Denied, "/srv/out/keep1/a": Denied,
		"/srv/ax/x": MayRead, "/srv/dx/x": 0, "/srv/q/yz": MayRead, "/srv/q/yaz": MayRead, "/srv/q/y/z": 0,
		"/srv/data/tmp/a": MayRead | MayWrite, "/srv/data/.git": Denied, "/srv/data/.git/config": Denied, "/srv/.git": Denied,
	} {
		if got := a.Decide(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		if got, _ := DecideFS(rules, path); got != want {
			t.Errorf("DecideFS(%s): %v, want %v", path, got, want)
		}
	}
}

func TestAutomatonOfNothing(t *testing.T) {
	a := automaton(t, nil)
	if a.Decide("/srv") != 0 || a.States() != 1 {
		t.Errorf("%+v", a)
	}
}

// TestAutomatonIsCanonical compiles lists that mean the same.
func TestAutomatonIsCanonical(t *testing.T) {
	for _, lists := range [][2][]FSRule{
		{{{Read, "/srv/a"}, {Write, "/srv/b/*"}}, {{Write, "/srv/b/*"}, {Read, "/srv/a/**"}, {Read, "/srv/a"}}},
		{{{Read, "/srv/[ab]"}}, {{Read, "/srv/[a-b]"}}},
		{{{Write, "/srv/a"}, {Read, "/srv/a/b"}}, {{Write, "/srv/a"}}},
		{{{Deny, "/srv/a*"}}, {{Deny, "/srv/a*/**"}}},
		{{{Read, "/srv/**/**/x"}}, {{Read, "/srv/**/x"}}},
		{{{Deny, "/srv/a"}, {Read, "/srv/a/b"}}, {{Deny, "/srv/a"}}},
	} {
		if a, b := automaton(t, lists[0]), automaton(t, lists[1]); !reflect.DeepEqual(a, b) {
			t.Errorf("%v and %v differ: %d and %d states", lists[0], lists[1], a.States(), b.States())
		}
	}
}

// mixedRules are a thousand rules of the kinds that people write.
func mixedRules(n int) []FSRule {
	r := rand.New(rand.NewPCG(1, 2))
	var rules []FSRule
	for i := range n {
		switch i % 5 {
		case 0:
			var name strings.Builder
			for range 24 {
				name.WriteByte("abcdefghijklmnopqrstuvwxyz0123456789"[r.IntN(36)])
			}
			rules = append(rules, FSRule{Read, "/srv/data/" + name.String()})
		case 1:
			rules = append(rules, FSRule{Read, fmt.Sprintf("/home/u%d/*.ext%d", i, i)})
		case 2:
			rules = append(rules, FSRule{Read, fmt.Sprintf("/w%d/**/f%d.py", i, i)})
		case 3:
			rules = append(rules, FSRule{Write, fmt.Sprintf("/srv/out/job-%d/**", i)})
		case 4:
			rules = append(rules, FSRule{Deny, fmt.Sprintf("/srv/out/job-%d/private", i-1)})
		}
	}
	return rules
}

func literalRules(n int) []FSRule {
	r := rand.New(rand.NewPCG(3, 4))
	var rules []FSRule
	for range n {
		var name strings.Builder
		for range 26 {
			name.WriteByte("abcdefghijklmnopqrstuvwxyz0123456789"[r.IntN(36)])
		}
		rules = append(rules, FSRule{Read, "/srv/data/x" + name.String()})
	}
	return rules
}

// TestAutomatonSizes compiles a thousand mixed rules to at most 1 MiB. How long that takes is
// `make bench`'s to say.
func TestAutomatonSizes(t *testing.T) {
	for name, test := range map[string]struct {
		rules []FSRule
		size  int
	}{"mixed": {mixedRules(1000), 1 << 20}, "literals": {literalRules(1000), 2 << 20}} {
		a := automaton(t, test.rules)
		t.Logf("%s: %d states, %d wide, %d KiB", name, a.States(), a.Width, a.Size()>>10)
		if a.Size() > test.size {
			t.Errorf("%s: %d bytes", name, a.Size())
		}
	}
}

// TestAutomatonExplosion refuses what multiplies, naming a pattern, and soon.
func TestAutomatonExplosion(t *testing.T) {
	rules := []FSRule{{Read, "/srv/innocent"}}
	for i := range 100 {
		rules = append(rules, FSRule{Read, fmt.Sprintf("/data/*k%d*", i)})
	}
	start := time.Now()
	_, err := CompileGlobs(rules)
	if err == nil || !strings.Contains(err.Error(), "fs: \"/data/*k") {
		t.Errorf("got %v", err)
	}
	t.Logf("%v after %v", err, time.Since(start))
	if time.Since(start) > 20*time.Second {
		t.Errorf("took %v", time.Since(start))
	}
}

func BenchmarkCompileGlobs(b *testing.B) {
	rules := mixedRules(1000)
	for b.Loop() {
		automaton(b, rules)
	}
}

func BenchmarkAutomatonDecide(b *testing.B) {
	a := automaton(b, mixedRules(1000))
	for b.Loop() {
		a.Decide("/w7/lib/python/site-packages/f7.py")
	}
}
