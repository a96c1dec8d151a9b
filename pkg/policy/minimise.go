package policy

import "slices"

// partition divides the numbers from 0 into sets that are only ever split. The
// members of a set stand together in elements: marking one moves it to the front
// of its set, and splitting cuts the marked front off.
type partition struct {
	elements []int32 // all numbers, set by set
	place    []int32 // by number: where it stands in elements
	set      []int32 // by number
	first    []int32 // by set: where it begins in elements
	end      []int32 // by set
	marked   []int32 // by set: how many are marked
	touched  []int32 // sets with a mark
}

// newPartition puts the numbers up to len(labels) into sets by their labels.
func newPartition(labels []uint8) *partition {
	n := len(labels)
	p := &partition{elements: make([]int32, n), place: make([]int32, n), set: make([]int32, n)}
	var begin [257]int32
	for _, label := range labels {
		begin[int(label)+1]++
	}
	var set [256]int32
	for label := range 256 {
		size := begin[label+1]
		begin[label+1] += begin[label]
		if size > 0 {
			set[label] = int32(len(p.first))
			p.first, p.end = append(p.first, begin[label]), append(p.end, begin[label]+size)
		}
	}
	for e, label := range labels {
		at := begin[label]
		begin[label]++
		p.elements[at], p.place[e], p.set[e] = int32(e), at, set[label]
	}
	p.marked = make([]int32, len(p.first))
	return p
}

func (p *partition) mark(e int32) {
	s, at := p.set[e], p.place[e]
	to := p.first[s] + p.marked[s]
	if at < to {
		return
	}
	other := p.elements[to]
	p.elements[at], p.place[other] = other, at
	p.elements[to], p.place[e] = e, to
	if p.marked[s] == 0 {
		p.touched = append(p.touched, s)
	}
	p.marked[s]++
}

// split cuts every set with marks in two; the smaller part becomes a new set.
func (p *partition) split() {
	for _, s := range p.touched {
		cut := p.first[s] + p.marked[s]
		p.marked[s] = 0
		if cut == p.end[s] {
			continue
		}
		added := int32(len(p.first))
		if cut-p.first[s] <= p.end[s]-cut {
			p.first, p.end = append(p.first, p.first[s]), append(p.end, cut)
			p.first[s] = cut
		} else {
			p.first, p.end = append(p.first, cut), append(p.end, p.end[s])
			p.end[s] = cut
		}
		p.marked = append(p.marked, 0)
		for _, e := range p.elements[p.first[added]:p.end[added]] {
			p.set[e] = added
		}
	}
	p.touched = p.touched[:0]
}

// minimise returns the smallest automaton with the same verdicts. It is the
// algorithm of Valmari and Lehtinen (2008): states and edges are refined in turn,
// in O(edges × log states), and missing edges cost nothing. Every state leads to
// a verdict, because every position of a pattern leads to its end.
func (d *dfa) minimise() *dfa {
	tails := make([]int32, len(d.edges)) // by edge: the state that it leaves
	for state := range d.verdicts {
		for e := d.first[state]; e < d.first[state+1]; e++ {
			tails[e] = int32(state)
		}
	}
	into, incoming := d.incoming()
	states, edges := d.partitions()
	for block, cord := 1, 0; cord < len(edges.first); cord++ {
		for _, e := range edges.elements[edges.first[cord]:edges.end[cord]] {
			states.mark(tails[e])
		}
		states.split()
		for ; block < len(states.first); block++ {
			for _, state := range states.elements[states.first[block]:states.end[block]] {
				for _, e := range incoming[into[state]:into[state+1]] {
					edges.mark(e)
				}
			}
			edges.split()
		}
	}
	return d.quotient(states)
}

// partitions returns the states by verdict and the edges by class.
func (d *dfa) partitions() (states, edges *partition) {
	verdicts, classes := make([]uint8, len(d.verdicts)), make([]uint8, len(d.edges))
	for i, v := range d.verdicts {
		verdicts[i] = uint8(v)
	}
	for i, e := range d.edges {
		classes[i] = e.class
	}
	return newPartition(verdicts), newPartition(classes)
}

// incoming lists the edges by the state that they lead to.
func (d *dfa) incoming() (first, edges []int32) {
	first = make([]int32, len(d.verdicts)+1)
	for _, e := range d.edges {
		first[e.to+1]++
	}
	for i := 1; i < len(first); i++ {
		first[i] += first[i-1]
	}
	next := slices.Clone(first)
	edges = make([]int32, len(d.edges))
	for i, e := range d.edges {
		edges[next[e.to]] = int32(i)
		next[e.to]++
	}
	return first, edges
}

// quotient makes one state of each set, numbered as a walk by classes from the
// start meets them.
func (d *dfa) quotient(states *partition) *dfa {
	q := &dfa{blame: d.blame}
	number := make([]int32, len(states.first))
	for i := range number {
		number[i] = -1
	}
	var order []int32 // sets
	visit := func(state int32) int32 {
		set := states.set[state]
		if number[set] < 0 {
			number[set] = int32(len(order))
			order = append(order, set)
		}
		return number[set]
	}
	visit(d.start)
	for at := 0; at < len(order); at++ {
		state := states.elements[states.first[order[at]]]
		q.verdicts = append(q.verdicts, d.verdicts[state])
		q.first = append(q.first, int32(len(q.edges)))
		for _, e := range d.edges[d.first[state]:d.first[state+1]] {
			q.edges = append(q.edges, edge{e.class, visit(e.to)})
		}
	}
	q.first = append(q.first, int32(len(q.edges)))
	return q
}
