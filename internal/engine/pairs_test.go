package engine

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// A bundle of psi's own has the filter that fits the host, whichever it came with; any other
// filter stays as it is, and nobody holds what it lets be made.
func TestChooseFilter(t *testing.T) {
	for _, document := range []string{"{}", "udp: ['10.0.0.1:1']", "expose: [8000]"} {
		p := parse(t, document)
		plain, pairs := bundle.SeccompOf(p), bundle.SeccompWithPairs(p)
		narrower := bundle.SeccompOf(p)
		narrower.Syscalls = narrower.Syscalls[:len(narrower.Syscalls)-1]
		for name, tc := range map[string]struct {
			filter, want *specs.LinuxSeccomp
			host, held   Pairs
		}{
			"by LSM":               {plain, pairs, PairsByLSM, PairsByLSM},
			"by the cgroup":        {plain, pairs, PairsByCgroup, PairsByCgroup},
			"by nobody":            {plain, plain, "", ""},
			"with pairs":           {pairs, pairs, PairsByCgroup, PairsByCgroup},
			"with pairs by nobody": {pairs, plain, "", ""},
			"another one":          {narrower, narrower, PairsByLSM, ""},
			"none":                 {nil, nil, PairsByLSM, ""},
		} {
			spec := &specs.Spec{Linux: &specs.Linux{Seccomp: tc.filter}}
			linux := spec.Linux
			held, err := ChooseFilter(spec, p, tc.host)
			if err != nil || held != tc.held || !reflect.DeepEqual(spec.Linux.Seccomp, tc.want) {
				t.Errorf("%s, %s: %q, %v, the filter is the wanted one: %v", document, name, held, err, reflect.DeepEqual(spec.Linux.Seccomp, tc.want))
			}
			if linux.Seccomp != tc.filter {
				t.Errorf("%s, %s: the bundle's own filter has changed", document, name)
			}
		}
		// Read from a file it is the same.
		data, err := json.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		spec := &specs.Spec{Linux: &specs.Linux{Seccomp: new(specs.LinuxSeccomp)}}
		if err := json.Unmarshal(data, spec.Linux.Seccomp); err != nil {
			t.Fatal(err)
		}
		if held, err := ChooseFilter(spec, p, PairsByLSM); held != PairsByLSM || err != nil {
			t.Errorf("%s, from a file: %q, %v", document, held, err)
		}
	}
	// The filter of a policy that exposes is not that of one which does not.
	spec := &specs.Spec{Linux: &specs.Linux{Seccomp: bundle.SeccompOf(parse(t, "expose: [8000]"))}}
	if held, err := ChooseFilter(spec, parse(t, "{}"), PairsByCgroup); held != "" || err != nil {
		t.Errorf("another policy's filter: %q, %v", held, err)
	}
}

// An engine's container has pairs with psi's filter alone, and the record says who holds them.
func TestPairsOfEngines(t *testing.T) {
	for _, by := range []Pairs{"", PairsByLSM, PairsByCgroup} {
		host := testHost()
		host.Pairs = func() Pairs { return by }
		n, err := Narrow(engineSpec(), parse(t, "{}"), host)
		if err != nil || n.Pairs != "" || reflect.DeepEqual(n.Confine.Filters, []string{PythonPairs}) {
			t.Errorf("without seccomp: python: %+v, %v", n, err)
		}
		if n, err = Narrow(engineSpec(), parse(t, "seccomp: python"), host); err != nil {
			t.Fatal(err)
		}
		want := Python
		if by != "" {
			want = PythonPairs
		}
		if n.Pairs != by || !reflect.DeepEqual(n.Confine.Filters, []string{want}) || n.Files.Needed != (by == PairsByLSM) {
			t.Errorf("%q: %q, %v, %+v", by, n.Pairs, n.Confine.Filters, n.Files)
		}
		held := ""
		for _, e := range n.Enforced {
			if e.Rule == pairsRule {
				held = e.By
			}
		}
		if !strings.HasPrefix(held, string(by)) || by == "" && !strings.HasPrefix(held, "none") {
			t.Errorf("%q: %q", by, held)
		}
		if _, err := n.Confine.Confinement(); err != nil {
			t.Error(err)
		}
		// A policy that comes later changes nothing of it.
		r := &Record{Policy: parse(t, "seccomp: python"), Made: Made{Policy: parse(t, "seccomp: python"), Pairs: by}, Confine: n.Confine, Enforced: n.Enforced}
		next, err := r.Reload(parse(t, "{seccomp: python, pids: 5}"), "test", Holds{})
		if err != nil || next.Made.Pairs != by || !reflect.DeepEqual(next.Confine, n.Confine) {
			t.Errorf("%q: %+v, %v", by, next, err)
		}
	}
	var m Made
	if err := json.Unmarshal([]byte(`{"policy": {}, "pairs": "magic"}`), &m); err == nil {
		t.Error("pairs by magic")
	}
}
