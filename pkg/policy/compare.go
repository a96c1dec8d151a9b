package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Difference is something that one policy permits and another does not.
type Difference struct {
	Key     string `json:"key"`            // of the document: "fs", "tcp", "imports", "mem", …
	Permits string `json:"permits"`        // "read", "write", "connect", "listen", "import", "more"
	Example string `json:"example"`        // a path, an endpoint, a module, or "256MiB → 1GiB"
	Rule    string `json:"rule,omitempty"` // what permits it, as documents write it; empty for limits
}

// String formats as "fs: read /srv/a: by read /srv/*".
func (d Difference) String() string {
	text := fmt.Sprintf("%s: %s %s", d.Key, d.Permits, d.Example)
	if d.Rule != "" {
		text += ": by " + d.Rule
	}
	return text
}

// Bounds of a comparison.
const (
	maxPairs    = 1 << 20 // states of the product of two automata
	maxExamples = 64      // differences of one key
	maxPieces   = 1 << 16 // blocks that one endpoint is cut into
)

// Compare returns what b permits and a does not, with an example of each; none
// means that b permits nothing more. Paths are compared by the automata of the
// two policies, not by the text of their rules, and endpoints by the addresses
// that they cover: each rule of b that opens something new is found, with the
// shortest path that shows it. Errors are those of [CompileGlobs], and one that
// says that the comparison would be too large.
func Compare(a, b Policy) ([]Difference, error) {
	files, err := compareFS(a, b)
	if err != nil {
		return nil, err
	}
	all := append(compareLimits(a.Limits(), b.Limits()), files...)
	all = append(all, compareEndpoints("tcp", a.tcp, b.tcp)...)
	all = append(all, compareEndpoints("udp", a.udp, b.udp)...)
	all = append(all, compareExposed(a, b)...)
	all = append(all, compareImports(a, b)...)
	if b.allowDegraded && !a.allowDegraded {
		all = append(all, Difference{Key: "allow_degraded", Permits: "more", Example: "false → true"})
	}
	if a.seccomp == SeccompPython && b.seccomp != SeccompPython {
		all = append(all, Difference{Key: "seccomp", Permits: "more", Example: "python → the engine's own"})
	}
	if a.isolation == IsolationFresh && b.isolation != IsolationFresh {
		all = append(all, Difference{Key: "isolation", Permits: "more", Example: "fresh → forked from a warm interpreter"})
	}
	return all, nil
}

func compareLimits(a, b Limits) []Difference {
	var all []Difference
	if b.CPU > a.CPU {
		all = append(all, Difference{Key: "cpu", Permits: "more", Example: fmt.Sprintf("%g → %g", a.CPU, b.CPU)})
	}
	for _, k := range limitTable() {
		before, after := k.get(&a), k.get(&b)
		if k.key == "net_conns" {
			if a.NetConns == b.NetConns {
				continue // the difference is that of mem
			}
			before, after = a.Connections(), b.Connections()
		}
		more := after > before
		if k.time != nil || k.unlimited { // 0 is no limit
			more = before != 0 && (after == 0 || after > before)
		}
		if more {
			all = append(all, Difference{Key: k.key, Permits: "more", Example: k.format(before) + " → " + k.format(after)})
		}
	}
	return all
}

// compareEndpoints finds each rule of b that opens something new. A range of ports
// is cut where any rule of either begins or ends, so that one port of each piece
// stands for all.
func compareEndpoints(key string, a, b endpoints) []Difference {
	var all []Difference
	others := slices.Concat(a.allow, a.deny, b.deny)
	open := a.open(key)
	for _, e := range b.allow {
		if len(all) >= maxExamples {
			break
		}
		for _, ports := range segments(e, others) {
			if host, found := newHost(e, ports[0], endpoints{open, a.deny}, b); found {
				example := Endpoint{Host: host, Port: ports[0]}
				all = append(all, Difference{Key: key, Permits: "connect", Example: example.String(), Rule: e.describe()})
				break
			}
		}
	}
	return all
}

// newHost returns a host that e, a rule of b, opens at a port, and a, whose allow is
// what its deny leaves, does not.
func newHost(e Endpoint, port uint16, a, b endpoints) (host string, found bool) {
	at := Endpoint{Port: port}
	block, isAddress := e.Prefix()
	if !isAddress {
		// A wildcard is new unless one rule of a covers all of it.
		covers := func(r Endpoint) bool { return r.overlapsPorts(at) && r.CoversName(e.Host) }
		open := slices.ContainsFunc(a.allow, func(r Endpoint) bool { return covers(r) && (r.Private || !e.Private) })
		lost := slices.ContainsFunc(a.deny, func(r Endpoint) bool {
			return r.overlapsPorts(at) && (r.CoversName(e.Host) || e.CoversName(r.Host) && !slices.Contains(b.deny, r))
		})
		return e.Host, (!open || lost) && !slices.ContainsFunc(b.deny, covers)
	}
	var closed []netip.Prefix // to e: what a opens, and what b denies
	for _, r := range a.allow {
		if prefix, ok := r.Prefix(); ok && r.overlapsPorts(at) {
			closed = append(closed, covered(prefix)...)
		}
	}
	for _, r := range b.deny {
		if prefix, ok := r.Prefix(); ok && r.overlapsPorts(at) {
			closed = append(closed, prefix)
		}
	}
	for _, piece := range covered(block) {
		if left := subtractAll([]netip.Prefix{piece}, closed, maxPieces); len(left) > 0 {
			return exampleAddress(left[0]).String(), true
		}
	}
	return "", false
}

// exampleAddress returns an address of a block that looks like one of a host.
func exampleAddress(block netip.Prefix) netip.Addr {
	if next := block.Addr().Next(); !block.IsSingleIP() && block.Contains(next) {
		return next
	}
	return block.Addr()
}

func compareImports(a, b Policy) []Difference {
	if !a.importsLimited {
		return nil
	}
	if !b.importsLimited {
		return []Difference{{Key: "imports", Permits: "import", Example: "every module", Rule: "no imports key"}}
	}
	common := intersectImports(a.imports, b.imports)
	var all []Difference
	for _, name := range b.imports {
		if !slices.Contains(common, name) && len(all) < maxExamples {
			all = append(all, Difference{Key: "imports", Permits: "import", Example: name, Rule: name})
		}
	}
	return all
}

// shape is what a path looks like so far: only absolute, clean ones are paths.
type shape uint8

const (
	noPath    shape = iota
	atStart         // nothing yet
	atRoot          // "/", a path
	afterName       // a slash behind a name, not a path
	oneDot          // a component ".", not a path
	twoDots         // a component "..", not a path
	inName          // a path
)

func (s shape) isPath() bool { return s == atRoot || s == inName }

// after returns the shape with one more byte.
func (s shape) after(c byte) shape {
	switch {
	case c == 0:
		return noPath
	case c == '/':
		switch s {
		case atStart:
			return atRoot
		case inName:
			return afterName
		}
		return noPath
	case s == atStart:
		return noPath
	case c == '.' && (s == atRoot || s == afterName):
		return oneDot
	case c == '.' && s == oneDot:
		return twoDots
	}
	return inName
}

// pair is a state of the product of two automata, and how it was reached.
type pair struct {
	a, b   uint16
	shape  shape
	last   byte
	before int32
}

func compareFS(a, b Policy) ([]Difference, error) {
	if len(b.fs) == 0 {
		return nil, nil
	}
	one, err := CompileGlobs(a.fs)
	if err != nil {
		return nil, fmt.Errorf("comparing with the first policy: %w", err)
	}
	two, err := CompileGlobs(b.fs)
	if err != nil {
		return nil, fmt.Errorf("comparing with the second policy: %w", err)
	}
	bytes := representatives(one, two)
	seen := map[pair]bool{}
	queue := []pair{{a: one.Start, b: two.Start, shape: atStart, before: -1}}
	found := make(map[Difference]bool)
	var all []Difference
	for at := 0; at < len(queue) && len(all) < maxExamples; at++ {
		if len(queue) > maxPairs {
			return nil, &Error{Key: "fs", Rule: fmt.Sprintf("the two policies have more than %d states together", maxPairs),
				WayOut: "compare policies with fewer patterns that have stars in their middle"}
		}
		p := queue[at]
		if gained := two.Verdict(p.b) &^ one.Verdict(p.a) & (MayRead | MayWrite); gained != 0 && p.shape.isPath() {
			all = append(all, explainGain(b.fs, gained, spell(queue, at), found)...)
		}
		for _, c := range bytes {
			next := pair{a: one.Step(p.a, c), b: two.Step(p.b, c), shape: p.shape.after(c)}
			if next.b == 0 || next.shape == noPath || seen[next] {
				continue
			}
			seen[next] = true
			next.last, next.before = c, int32(at)
			queue = append(queue, next)
		}
	}
	return all, nil
}

// explainGain makes a difference for each rule that gives path what is gained,
// unless there is one of that rule already.
func explainGain(rules []FSRule, gained Access, path string, found map[Difference]bool) []Difference {
	var all []Difference
	_, deciding := DecideFS(rules, path)
	for _, r := range deciding {
		if r.access()&gained == 0 {
			continue
		}
		d := Difference{Key: "fs", Permits: "read", Rule: r.describe()}
		if gained&r.access()&MayWrite != 0 {
			d.Permits = "write"
		}
		if !found[d] {
			found[d] = true
			d.Example = path
			all = append(all, d)
		}
	}
	return all
}

// spell returns the path that leads to a pair.
func spell(queue []pair, at int) string {
	var path []byte
	for i := int32(at); queue[i].before >= 0; i = queue[i].before {
		path = append(path, queue[i].last)
	}
	slices.Reverse(path)
	return string(path)
}

// representatives returns one byte of each kind that the automata, or the shape
// of a path, tell apart; the ones that people read best first.
func representatives(one, two *Automaton) []byte {
	const best = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ/._-"
	var order []byte
	order = append(order, best...)
	for c := range 256 {
		if !strings.ContainsRune(best, rune(c)) {
			order = append(order, byte(c))
		}
	}
	type kind struct{ a, b, special byte }
	seen := make(map[kind]bool)
	var bytes []byte
	for _, c := range order {
		k := kind{a: one.Classes[c], b: two.Classes[c]}
		if c == '.' || c == '/' || c == 0 {
			k.special = c + 1
		}
		if !seen[k] {
			seen[k] = true
			bytes = append(bytes, c)
		}
	}
	return bytes
}
