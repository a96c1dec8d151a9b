package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// must ends the test when making a policy failed.
func must(t *testing.T) func(Policy, error) Policy {
	t.Helper()
	return func(p Policy, err error) Policy {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
}

func TestZeroPolicyIsDefaults(t *testing.T) {
	var zero Policy
	if zero.Limits() != defaultLimits() || zero.Digest() != Defaults().Digest() {
		t.Errorf("the zero Policy is %s", zero.Canonical())
	}
	if modules, limited := zero.Imports(); limited || len(modules) != 0 {
		t.Errorf("the zero Policy limits imports to %v", modules)
	}
	if p := must(t)(zero.AllowFS("/srv/data", Read)); p.Limits() != defaultLimits() {
		t.Errorf("a modifier lost the defaults: %+v", p.Limits())
	}
}

func TestCanonical(t *testing.T) {
	const defaults = `{"allow_degraded":false,"cpu":1,"cpu_ms":0,"fs":[],"mem":268435456,"message":67108864,` +
		`"open_files":256,"output":16777216,"pids":64,"read_only":false,"tcp":[],"tmp":67108864,"wall_ms":0}`
	if got := string(Defaults().Canonical()); got != defaults {
		t.Errorf("the canonical form of the defaults is\n%s, want\n%s", got, defaults)
	}
	p := must(t)(Defaults().AllowFS("/srv/<a>&\u2028\n\x01é/*", Write))
	p = must(t)(p.AllowFS("/srv/data", Deny))
	p = must(t)(p.AllowTCP("[::0001]:80"))
	p = must(t)(p.AllowImport("math"))
	p = must(t)(p.AllowImport("json"))
	const want = `{"allow_degraded":false,"cpu":1,"cpu_ms":0,"fs":[{"write":"/srv/<a>&\u2028\n\u0001é/*"},{"deny":"/srv/data"}],` +
		`"imports":["json","math"],"mem":268435456,"message":67108864,` +
		`"open_files":256,"output":16777216,"pids":64,"read_only":false,"tcp":["[::1]:80"],"tmp":67108864,"wall_ms":0}`
	if got := string(p.Canonical()); got != want {
		t.Errorf("the canonical form is\n%s, want\n%s", got, want)
	}
	if d := p.Digest(); !strings.HasPrefix(d, "sha256:") || len(d) != len("sha256:")+64 {
		t.Errorf("the digest is %s", d)
	}
	none := must(t)(Defaults().IntersectImports(nil))
	if got := string(none.Canonical()); !strings.Contains(got, `"imports":[],`) {
		t.Errorf("without any module the canonical form is %s", got)
	}
}

func TestModifiers(t *testing.T) {
	p := must(t)(Defaults().AllowFS("/srv/data/*.csv", Read))
	p = must(t)(p.AllowFS("/srv/out/**", Write))
	p = must(t)(p.AllowFS("/srv/data/*.csv", Read))
	if want := []FSRule{{Read, "/srv/data/*.csv"}, {Write, "/srv/out/**"}}; !slices.Equal(p.FS(), want) {
		t.Errorf("fs is %v", p.FS())
	}
	p = must(t)(p.AllowTCP("B.example:443"))
	p = must(t)(p.AllowTCP("a.example:443"))
	p = must(t)(p.AllowTCP("b.example.:443"))
	if want := []Endpoint{{Host: "b.example", Port: 443}, {Host: "a.example", Port: 443}}; !slices.Equal(p.TCP(), want) {
		t.Errorf("tcp is %v", p.TCP())
	}
	for _, name := range []string{"math", "json", "math"} {
		p = must(t)(p.AllowImport(name))
	}
	if modules, limited := p.Imports(); !limited || !slices.Equal(modules, []string{"json", "math"}) {
		t.Errorf("imports are %v, %v", modules, limited)
	}
	for name, err := range map[string]error{
		"fs":      errorOf(p.AllowFS("relative", Read)),
		"fs ":     errorOf(p.AllowFS("/srv/data", "rw")),
		"tcp":     errorOf(p.AllowTCP("x")),
		"imports": errorOf(p.AllowImport("a.*")),
	} {
		var e *Error
		if !errors.As(err, &e) || e.Key != strings.TrimSpace(name) || e.Line != 0 || e.WayOut == "" {
			t.Errorf("%s: %#v", name, err)
		}
	}
}

func errorOf(_ Policy, err error) error { return err }

func TestReadOnlyRefusesWriting(t *testing.T) {
	p := must(t)(Parse([]byte("read_only: true"), "test"))
	if !p.ReadOnly() {
		t.Fatal("read_only is not kept")
	}
	p = must(t)(p.AllowFS("/srv/data", Read))
	p = must(t)(p.AllowFS("/srv/data/private", Deny))
	q, err := p.AllowFS("/srv/out", Write)
	if err == nil || !strings.Contains(err.Error(), "read_only: true") || q.Digest() != p.Digest() {
		t.Errorf("a write rule gave %v", err)
	}
}

func TestIntersectImports(t *testing.T) {
	for _, test := range []struct {
		have       []string // nil: every module
		with, want []string
		errorHolds string
	}{
		{nil, []string{"math"}, []string{"math"}, ""},
		{nil, nil, nil, ""},
		{[]string{"math"}, nil, nil, ""},
		{[]string{}, []string{"math"}, nil, ""},
		{[]string{"json", "math"}, []string{"math", "os"}, []string{"math"}, ""},
		{[]string{"xml"}, []string{"xml.etree"}, []string{"xml.etree"}, ""},
		{[]string{"xml.etree"}, []string{"xml", "xmlrpc"}, []string{"xml.etree"}, ""},
		{[]string{"xml"}, []string{"xmlrpc"}, nil, ""},
		{[]string{"xml", "xml.dom"}, []string{"xml.dom.minidom", "xml.sax"}, []string{"xml.dom.minidom", "xml.sax"}, ""},
		{[]string{"math"}, []string{"math", ""}, []string{"math"}, "an empty module name"},
		{[]string{"math"}, []string{"../math"}, []string{"math"}, "is not the name of a Python module"},
	} {
		p := Defaults()
		if test.have != nil {
			p = must(t)(p.IntersectImports(test.have))
		}
		q, err := p.IntersectImports(test.with)
		if test.errorHolds != "" {
			if err == nil || !strings.Contains(err.Error(), test.errorHolds) {
				t.Errorf("%v with %q: %v", test.have, test.with, err)
			}
		} else if err != nil {
			t.Errorf("%v with %q: %v", test.have, test.with, err)
		}
		if got, limited := q.Imports(); !limited || !slices.Equal(got, test.want) {
			t.Errorf("%v with %v = %v, %v, want %v", test.have, test.with, got, limited, test.want)
		}
	}
}

func TestCheckImport(t *testing.T) {
	for _, name := range []string{"math", "xml.etree.ElementTree", "_thread", "__future__", "a1"} {
		if err := checkImport(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "1a", "a-b", "a b", "a/b", "*", "numpy.*", "é", "ﬁ", "a\n",
		"a\x00", strings.Repeat("a", 256)} {
		if err := checkImport(name); err == nil || name != "" && err.WayOut == "" {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestBounds holds the limits of one policy, which the canonical document must
// keep too.
func TestBounds(t *testing.T) {
	p := Defaults()
	for i := range maxRules {
		if err := p.addFS(FSRule{Read, fmt.Sprintf("/srv/%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.AllowFS("/srv/more", Read); err == nil || !strings.Contains(err.Error(), "4096 entries") {
		t.Errorf("one rule too many: %v", err)
	}
	must(t)(Parse(p.Canonical(), "canonical"))

	p = Defaults()
	var err error
	for i := 0; err == nil; i++ {
		if i > maxRules {
			t.Fatal("a policy of any size is accepted")
		}
		before := p
		p, err = p.AllowFS(fmt.Sprintf("/srv/%d/%s", i, strings.Repeat("\x01", 4000)), Read)
		if err != nil {
			p = before
		}
	}
	if !strings.Contains(err.Error(), "the policy is larger than 1MiB") {
		t.Error(err)
	}
	must(t)(Parse(p.Canonical(), "canonical"))
}

// randomPolicy makes a policy by a random walk through the modifiers, and calls
// step with each policy before and after a modifier.
func randomPolicy(random *rand.Rand, steps int, step func(before, after Policy)) Policy {
	p := Defaults()
	for range steps {
		before := p
		pick := func(from ...string) string { return from[random.IntN(len(from))] }
		var err error
		switch random.IntN(5) {
		case 0:
			p, err = p.AllowFS(pick("/srv", "/home/x", "/opt/é\n", "/etc", "x")+pick("", "/*", "/**/*.[a-c]", "/?", "/"),
				FSMode(pick("read", "write", "deny", "rw")))
		case 1:
			p, err = p.AllowTCP(pick("127.0.0.1", "[::FFFF:1.2.3.4]", "Example.org", "10.0.0.0/8", "*") + pick(":1", ":443", ":0"))
		case 2:
			p, err = p.AllowImport(pick("math", "json", "xml.etree", "a-b"))
		case 3:
			p, err = p.IntersectImports([]string{pick("math", "xml", "1"), pick("json", "xml.etree.ElementTree")})
		case 4:
			l := p.Limits()
			l.Mem = random.Int64N(maxSize)
			l.CPU = random.Float64() * 2
			l.CPUTime = time.Duration(random.Int64N(100)) * time.Millisecond
			l.Tmp = random.Int64N(2) * mib
			p, err = p.WithLimits(l)
		}
		if err != nil && p.Digest() != before.Digest() {
			panic("an error changed the policy: " + err.Error())
		}
		step(before, p)
	}
	return p
}

func TestPropertyCanonicalParsesToItself(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		randomPolicy(random, 12, func(_, p Policy) {
			q, err := Parse(p.Canonical(), "canonical.json")
			if err != nil {
				t.Fatalf("%s: %v", p.Canonical(), err)
			}
			if !reflect.DeepEqual(normal(p), normal(q)) {
				t.Fatalf("%s parses to %s", p.Canonical(), q.Canonical())
			}
			if q.Digest() != p.Digest() {
				t.Fatalf("%s changes its digest", p.Canonical())
			}
		})
	}
}

// normal makes empty lists nil, so that reflect.DeepEqual compares meanings.
func normal(p Policy) Policy {
	p.limits = p.Limits()
	p.fs = append([]FSRule(nil), p.fs...)
	p.tcp, p.udp = endpoints{append([]Endpoint(nil), p.tcp.allow...), append([]Endpoint(nil), p.tcp.deny...)}, endpoints{append([]Endpoint(nil), p.udp.allow...), append([]Endpoint(nil), p.udp.deny...)}
	p.imports = append([]string(nil), p.imports...)
	return p
}

func TestPropertyPoliciesNeverChange(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		type seen struct {
			policy Policy
			digest string
		}
		var history []seen
		randomPolicy(random, 12, func(before, _ Policy) {
			// Two different changes of one value must not share memory either.
			_, _ = before.AllowFS("/srv/other", Read)
			_, _ = before.AllowTCP("192.0.2.1:1")
			_, _ = before.AllowImport("aaa")
			history = append(history, seen{before, before.Digest()})
		})
		for _, s := range history {
			scribble(s.policy)
			if s.policy.Digest() != s.digest {
				t.Fatalf("a policy changed to %s", s.policy.Canonical())
			}
		}
	}
}

// scribble writes over everything that a policy hands out.
func scribble(p Policy) {
	for i, rules := 0, p.FS(); i < len(rules); i++ {
		rules[i] = FSRule{}
	}
	for i, endpoints := 0, p.TCP(); i < len(endpoints); i++ {
		endpoints[i] = Endpoint{}
	}
	modules, _ := p.Imports()
	for i := range modules {
		modules[i] = ""
	}
	canonical := p.Canonical()
	for i := range canonical {
		canonical[i] = 0
	}
}

// TestSharing gives the race detector something to find.
func TestSharing(t *testing.T) {
	p := must(t)(Defaults().AllowFS("/srv/data", Read))
	p = must(t)(p.AllowImport("math"))
	digest := p.Digest()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 50 {
				q, err := p.AllowFS(fmt.Sprintf("/srv/%d/%d", i, j), Read)
				if err != nil || len(q.FS()) != 2 {
					t.Error(q.FS(), err)
				}
				_, _ = p.AllowImport("abc")
			}
		})
	}
	group.Wait()
	if p.Digest() != digest {
		t.Error("sharing changed the policy")
	}
}
