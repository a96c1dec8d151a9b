package policy

import (
	"slices"
	"strings"
)

// nfa is the union of all patterns of a list of rules, before determinising. A
// run begins at all starts at once.
//
// One pattern is a row of positions. Between two components, before the first and
// after the last, there is a boundary, where a path may end or go on with a slash.
// "/a*" and "/**" are, with ⟲ for a loop over every byte but "/", ? for a step over
// one of them, and ···▶ for a step without a byte:
//
//	boundary ──/──▶ ○ ──a──▶ boundary⟲
//
//	   ┌··········································┐
//	   ▼                                          ·
//	boundary ──/──▶ ○ ──?──▶ ⟲ ···················┘
//	   └···▶ boundary
//
// So a "**" is a way from its boundary through one whole component back to it.
type nfa struct {
	classes [256]uint8
	width   int       // number of classes
	slash   uint8     // the class of "/", which is alone in it
	sets    [][]uint8 // classes of each byte set, by number; set 0 is all but "/"
	steps   []spot    // by number; 0 stands for nowhere
	starts  []uint32
	rules   []FSRule
	// by rule: what it says about the paths that it matches
	meanings []meaning
}

// spot is one position in one pattern.
type spot struct {
	rule   int32
	accept bool   // the path may end here
	set    int32  // the bytes that lead to next; -1: none
	loop   int32  // the bytes that stay here, 0 or none: -1
	next   uint32 // after set
	slash  uint32 // after a slash; 0: nowhere
	free   uint32 // where the run is as well, without a byte; 0: nowhere
}

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *byteSet) has(c byte) bool { return s[c>>6]&(1<<(c&63)) != 0 }

// notSlash is what "?" and "*" match.
func notSlash() byteSet {
	all := byteSet{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	all['/'>>6] &^= 1 << ('/' & 63)
	return all
}

// nfaBuilder collects positions and the sets of bytes that they distinguish.
type nfaBuilder struct {
	steps   []spot
	starts  []uint32
	sets    []byteSet
	numbers map[byteSet]int32
}

func newNFA(rules []FSRule, meanings []meaning) *nfa {
	type same struct {
		FSRule
		meaning
	}
	b := &nfaBuilder{numbers: make(map[byteSet]int32)}
	b.steps = append(b.steps, spot{rule: -1, set: -1, loop: -1})
	b.set(notSlash()) // number 0
	seen := make(map[same]bool, len(rules))
	for i, r := range rules {
		if key := (same{r, meanings[i]}); !seen[key] {
			seen[key] = true
			b.pattern(int32(i), r)
		}
	}
	n := &nfa{steps: b.steps, starts: b.starts, rules: rules, meanings: meanings}
	n.classify(b.sets)
	return n
}

// set returns the number of a set of bytes.
func (b *nfaBuilder) set(s byteSet) int32 {
	number, known := b.numbers[s]
	if !known {
		number = int32(len(b.sets))
		b.sets, b.numbers[s] = append(b.sets, s), number
	}
	return number
}

func (b *nfaBuilder) position(p spot) uint32 {
	b.steps = append(b.steps, p)
	return uint32(len(b.steps) - 1)
}

// pattern adds one rule.
func (b *nfaBuilder) pattern(rule int32, r FSRule) {
	blank := spot{rule: rule, set: -1, loop: -1}
	boundary := b.position(blank)
	b.starts = append(b.starts, boundary)
	names := components(r)
	for _, name := range names {
		if name == "**" {
			boundary = b.anyDepth(boundary, blank)
		} else {
			boundary = b.component(boundary, blank, name)
		}
	}
	b.steps[boundary].accept = true
	if len(names) == 1 && names[0] == "**" {
		// The path "/" has a slash and no component.
		b.steps[b.steps[b.starts[len(b.starts)-1]].slash].accept = true
	}
}

// components returns the components of a rule's pattern, with the "**" that a
// literal or denied one has by its meaning.
func components(r FSRule) []string {
	var names []string
	if r.Pattern != "/" {
		names = strings.Split(r.Pattern[1:], "/")
	}
	if isLiteral(r.Pattern) || r.Mode == Deny {
		names = append(names, "**")
	}
	// A second "**" beside one adds nothing.
	return slices.CompactFunc(names, func(a, b string) bool { return a == "**" && b == "**" })
}

// anyDepth adds a "**" after a boundary and returns the boundary behind it.
func (b *nfaBuilder) anyDepth(boundary uint32, blank spot) uint32 {
	within := blank
	within.loop, within.free = 0, boundary
	begin := blank
	begin.set, begin.next = 0, b.position(within)
	slash := b.position(begin)
	after := b.position(blank)
	b.steps[boundary].slash, b.steps[boundary].free = slash, after
	return after
}

// component adds the positions of one name and returns the boundary behind it.
func (b *nfaBuilder) component(boundary uint32, blank spot, name string) uint32 {
	at := b.position(blank)
	b.steps[boundary].slash = at
	if strings.Trim(name, "*") == "" {
		name = "?" + name // no name is empty
	}
	for i := 0; i < len(name); {
		size := 1
		var set byteSet
		switch name[i] {
		case '*':
			b.steps[at].loop = 0
			i++
			continue
		case '?':
			set = notSlash()
		case '[':
			var c class
			c, size = cutClass(name[i:])
			for value := range 256 {
				if value != '/' && c.has(byte(value)) {
					set.add(byte(value))
				}
			}
		default:
			set.add(name[i])
		}
		next := b.position(blank)
		b.steps[at].set, b.steps[at].next = b.set(set), next
		at = next
		i += size
	}
	return at
}

// classify finds the bytes that no set tells apart.
func (n *nfa) classify(sets []byteSet) {
	numbers := make(map[string]uint8)
	representative := []byte(nil)
	signature := make([]byte, (len(sets)+7)/8)
	for value := range 256 {
		clear(signature)
		for i := range sets {
			if sets[i].has(byte(value)) {
				signature[i/8] |= 1 << (i % 8)
			}
		}
		class, known := numbers[string(signature)]
		if !known {
			class = uint8(len(representative))
			numbers[string(signature)] = class
			representative = append(representative, byte(value))
		}
		n.classes[value] = class
	}
	n.width, n.slash = len(representative), n.classes['/']
	for i := range sets {
		var classes []uint8
		for class, value := range representative {
			if sets[i].has(value) {
				classes = append(classes, uint8(class))
			}
		}
		n.sets = append(n.sets, classes)
	}
}
