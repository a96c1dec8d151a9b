package confine

import (
	"encoding/binary"
	"slices"
)

// compact rewrites a program of libseccomp's into a shorter one that decides the same. libseccomp
// compares the number of a system call with one after another that it has a rule for, and asks an
// argument anew for every rule. The kernel runs the program at each call that an argument decides,
// and, when a filter is put on, for every number there is, before it translates each instruction:
// for a forked guest that took some 0.4 ms.
//
// The program becomes a graph of tests, equal parts of which are one; then for each range of numbers
// it is followed as far as the number decides, and the ranges are found by halves. A program with an
// instruction that libseccomp does not use stays as it is.
func compact(program []byte) []byte {
	c := compactor{from: instructions(program), shared: make(map[node]*node), seen: make(map[place]*node), pruned: make(map[answer]*node)}
	root := c.graph(place{})
	if root == nil {
		return program
	}
	w := writer{placed: make(map[*node]*position), loads: make(map[*node]bool)}
	root = c.byNumber(root)
	w.loads[root] = root.isTest()
	w.findLoads(root, make(map[*node]bool))
	w.place(root)
	return w.program()
}

// instruction is one of classic BPF.
type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

func instructions(program []byte) (out []instruction) {
	for i := 0; i+8 <= len(program); i += 8 {
		out = append(out, instruction{binary.LittleEndian.Uint16(program[i:]), program[i+2], program[i+3], binary.LittleEndian.Uint32(program[i+4:])})
	}
	return out
}

// The instructions that libseccomp uses (linux/bpf_common.h).
const (
	opLoad     = 0x20 // a word of seccomp_data
	opAnd      = 0x54
	opJump     = 0x05
	opEqual    = 0x15
	opGreater  = 0x25
	opAtLeast  = 0x35
	opReturn   = 0x06
	offNumber  = 0 // of struct seccomp_data: the system call's number, and its architecture
	offArch    = 4
	farthest   = 250 // that a conditional jump reaches, and some room
	allNumbers = 0xffffffff
)

// word is what a test looks at: some bits of a word of seccomp_data.
type word struct{ offset, mask uint32 }

// test compares a word.
type test struct {
	op   uint16
	word word
	k    uint32
}

// holds decides a test whose word is known.
func (t test) holds(value uint32) bool {
	switch value &= t.word.mask; t.op {
	case opEqual:
		return value == t.k
	case opGreater:
		return value > t.k
	default:
		return value >= t.k
	}
}

// node is a test with two ways on, or, with opReturn, the end.
type node struct {
	test
	yes, no *node
}

func (n *node) isTest() bool { return n.op != opReturn }

// place is an instruction, and what the accumulator holds there.
type place struct {
	pc   int
	word word
}

// answer is the outcome of a test, on the way to a node.
type answer struct {
	n     *node
	test  test
	holds bool
}

type compactor struct {
	from   []instruction
	shared map[node]*node
	seen   map[place]*node
	pruned map[answer]*node
}

// share returns the one node that is equal to n.
func (c *compactor) share(n node) *node {
	switch {
	case n.op == opReturn:
	case n.yes == n.no:
		return n.yes
	case n.word.mask == 0 && n.holds(0):
		return n.yes
	case n.word.mask == 0:
		return n.no
	}
	if found := c.shared[n]; found != nil {
		return found
	}
	c.shared[n] = &n
	return &n
}

// graph is the part of the program that begins at p; nil if an instruction is not known.
func (c *compactor) graph(p place) *node {
	if found := c.seen[p]; found != nil {
		return found
	}
	if p.pc >= len(c.from) {
		return nil
	}
	var n *node
	switch at := c.from[p.pc]; at.code {
	case opLoad:
		n = c.graph(place{p.pc + 1, word{at.k, 0xffffffff}})
	case opAnd:
		n = c.graph(place{p.pc + 1, word{p.word.offset, p.word.mask & at.k}})
	case opJump:
		n = c.graph(place{p.pc + 1 + int(at.k), p.word})
	case opReturn:
		n = c.share(node{test: test{op: opReturn, k: at.k}})
	case opEqual, opGreater, opAtLeast:
		yes, no := c.graph(place{p.pc + 1 + int(at.jt), p.word}), c.graph(place{p.pc + 1 + int(at.jf), p.word})
		if yes == nil || no == nil {
			return nil
		}
		n = c.share(node{test{at.code, p.word, at.k}, yes, no})
	}
	c.seen[p] = n
	return n
}

// prune leaves out of a graph the tests that an answer decides: the same one, and, where it says what a
// word is, all of that word.
func (c *compactor) prune(a answer) *node {
	n := a.n
	if !n.isTest() {
		return n
	}
	if found := c.pruned[a]; found != nil {
		return found
	}
	yes, no := c.prune(answer{n.yes, a.test, a.holds}), c.prune(answer{n.no, a.test, a.holds})
	known := a.holds && a.test.op == opEqual && n.word.offset == a.test.word.offset && n.word.mask&^a.test.word.mask == 0
	var out *node
	switch same := n.test == a.test; {
	case same && a.holds, known && n.holds(a.test.k):
		out = yes
	case same, known:
		out = no
	default:
		out = c.share(node{n.test, yes, no})
	}
	c.pruned[a] = out
	return out
}

// byNumber finds the way through n that a number takes by halves, after the architecture.
func (c *compactor) byNumber(n *node) *node {
	if n.isTest() && n.word.offset == offArch {
		return c.share(node{n.test, c.byNumber(n.yes), c.byNumber(n.no)})
	}
	bounds := make(map[uint32]bool)
	numberBounds(n, bounds, make(map[*node]bool))
	starts := []uint32{0}
	for bound := range bounds {
		starts = append(starts, bound)
	}
	slices.Sort(starts)
	var ranges []numbers
	for _, start := range slices.Compact(starts) {
		way := c.follow(n, start, make(map[*node]*node))
		if len(ranges) == 0 || ranges[len(ranges)-1].way != way {
			ranges = append(ranges, numbers{first: start, way: way})
		}
	}
	return c.halve(single(ranges))
}

// numbers is a range of system call numbers, up to the next, and what is decided of them; but for
// single ones.
type numbers struct {
	first uint32
	way   *node
	but   []numbers
}

// single joins ranges of the same way with one number between them: one test in place of two.
func single(ranges []numbers) (out []numbers) {
	const most = 3 // tests in a row
	for i := 0; i < len(ranges); i++ {
		if i > 0 && i+1 < len(ranges) && ranges[i+1].first == ranges[i].first+1 {
			if last := &out[len(out)-1]; last.way == ranges[i+1].way && len(last.but) < most {
				last.but = append(last.but, ranges[i])
				i++
				continue
			}
		}
		out = append(out, ranges[i])
	}
	return out
}

// numberBounds finds where the outcome of a test of the number changes.
func numberBounds(n *node, bounds map[uint32]bool, seen map[*node]bool) {
	if !n.isTest() || seen[n] {
		return
	}
	seen[n] = true
	if n.word.offset == offNumber {
		if n.op != opGreater {
			bounds[n.k] = true
		}
		if n.op != opAtLeast && n.k != allNumbers {
			bounds[n.k+1] = true
		}
	}
	numberBounds(n.yes, bounds, seen)
	numberBounds(n.no, bounds, seen)
}

// follow is n for one number.
func (c *compactor) follow(n *node, number uint32, done map[*node]*node) *node {
	if !n.isTest() {
		return n
	}
	if found := done[n]; found != nil {
		return found
	}
	var out *node
	switch {
	case n.word.offset != offNumber:
		yes, no := c.follow(n.yes, number, done), c.follow(n.no, number, done)
		out = c.share(node{n.test, c.prune(answer{yes, n.test, true}), c.prune(answer{no, n.test, false})})
	case n.holds(number):
		out = c.follow(n.yes, number, done)
	default:
		out = c.follow(n.no, number, done)
	}
	done[n] = out
	return out
}

// halve is the search for a number's range.
func (c *compactor) halve(ranges []numbers) *node {
	number := word{offNumber, 0xffffffff}
	if at := len(ranges) / 2; at > 0 {
		return c.share(node{test{opAtLeast, number, ranges[at].first}, c.halve(ranges[at:]), c.halve(ranges[:at])})
	}
	way := ranges[0].way
	for _, one := range ranges[0].but {
		way = c.share(node{test{opEqual, number, one.first}, one.way, way})
	}
	return way
}

// writer writes a graph down from its end: jumps lead forward only.
type writer struct {
	backward []instruction
	placed   map[*node]*position
	loads    map[*node]bool // those that are reached with something else than their word
}

// position is where a node's instructions are, counted from the program's end.
type position struct{ load, test int }

// findLoads finds the nodes that have to load their word.
func (w *writer) findLoads(n *node, seen map[*node]bool) {
	if !n.isTest() || seen[n] {
		return
	}
	seen[n] = true
	for _, next := range []*node{n.yes, n.no} {
		if next.isTest() && next.word != n.word {
			w.loads[next] = true
		}
		w.findLoads(next, seen)
	}
}

// add adds an instruction in front and returns its position.
func (w *writer) add(i instruction) int {
	w.backward = append(w.backward, i)
	return len(w.backward) - 1
}

func (w *writer) place(n *node) {
	if w.placed[n] != nil {
		return
	}
	if !n.isTest() {
		at := w.add(instruction{code: opReturn, k: n.k})
		w.placed[n] = &position{at, at}
		return
	}
	w.place(n.yes)
	w.place(n.no)
	yes, no := w.reach(n, n.yes), w.reach(n, n.no)
	at := len(w.backward)
	w.add(instruction{n.op, uint8(at - yes - 1), uint8(at - no - 1), n.k}) //nolint:gosec // farthest, and two bridges
	p := &position{at, at}
	if w.loads[n] {
		if n.word.mask != 0xffffffff {
			w.add(instruction{code: opAnd, k: n.word.mask})
		}
		p.load = w.add(instruction{code: opLoad, k: n.word.offset})
	}
	w.placed[n] = p
}

// reach is where a test jumps to for the next node, which is within reach then: what is returned
// is written once more, and to everything else a bridge is built.
func (w *writer) reach(from, to *node) int {
	p := w.placed[to]
	at := p.load
	if to.isTest() && to.word == from.word {
		at = p.test
	}
	if len(w.backward)-at <= farthest {
		return at
	}
	if !to.isTest() {
		p.load = w.add(instruction{code: opReturn, k: to.k})
		p.test = p.load
		return p.load
	}
	return w.add(instruction{code: opJump, k: uint32(len(w.backward) - at - 1)}) //nolint:gosec // the program's length at most
}

func (w *writer) program() []byte {
	var out []byte
	for _, i := range slices.Backward(w.backward) {
		out = binary.LittleEndian.AppendUint16(out, i.code)
		out = binary.LittleEndian.AppendUint32(append(out, i.jt, i.jf), i.k)
	}
	return out
}
