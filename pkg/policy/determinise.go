package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// dfa is a deterministic automaton without its dead state: what has no edge leads
// there.
type dfa struct {
	start    int32
	verdicts []Access // by state
	first    []int32  // by state, and one more: where its edges begin
	edges    []edge
	blame    *blame
}

type edge struct {
	class uint8
	to    int32
}

// blame counts how many states each rule takes part in, to name the worst one.
type blame struct {
	rules  []FSRule
	states []int
}

// explosion reports rules that multiply each other's states.
func (d *dfa) explosion(size string) *Error {
	worst := 0
	for rule, states := range d.blame.states {
		if states > d.blame.states[worst] {
			worst = rule
		}
	}
	return &Error{Key: "fs", Value: d.blame.rules[worst].Pattern,
		Rule:   fmt.Sprintf("the rules need %s together, and this pattern has the largest part in it", size),
		WayOut: "name directories instead of several patterns with stars in their middle"}
}

// subsets makes a dfa whose states are sets of positions.
type subsets struct {
	*nfa
	dfa
	numbers map[string]int32
	members []uint32 // of all states, one after another
	ends    []int    // by state: where its members end
	key     []byte   // scratch
	marks   []uint32 // by position: the last set that it was put into
	set     uint32   // the number of the set being built
	byClass [][]uint32
	touched []uint8
	over    bool
}

// maxEdges bounds the edges before minimising: memory and time.
const maxEdges = 1 << 22

func (n *nfa) determinise() (*dfa, *Error) {
	s := &subsets{nfa: n, numbers: make(map[string]int32), marks: make([]uint32, len(n.steps)), byClass: make([][]uint32, n.width)}
	s.blame = &blame{rules: n.rules, states: make([]int, len(n.rules))}
	var list []uint32
	s.set++
	for _, p := range n.starts {
		list = s.enter(list, p)
	}
	s.start = s.number(list)
	for state := 0; state < len(s.verdicts) && !s.over; state++ {
		s.first = append(s.first, int32(len(s.edges)))
		s.expand(state)
		s.over = s.over || len(s.verdicts) > maxSubsets || len(s.members) > maxPositions || len(s.edges) > maxEdges
	}
	if s.over {
		return nil, s.explosion(fmt.Sprintf("more than %d states", len(s.verdicts)))
	}
	s.first = append(s.first, int32(len(s.edges)))
	// No path is empty.
	s.verdicts[s.start] = 0
	return &s.dfa, nil
}

// enter adds a position, and where it leads without a byte, to the set that is
// being built.
func (s *subsets) enter(list []uint32, p uint32) []uint32 {
	for p != 0 && s.marks[p] != s.set {
		s.marks[p] = s.set
		list = append(list, p)
		p = s.steps[p].free
	}
	return list
}

// number returns the state of a set of positions, a new one if need be.
func (s *subsets) number(list []uint32) int32 {
	slices.Sort(list)
	s.key = s.key[:0]
	for _, p := range list {
		s.key = binary.LittleEndian.AppendUint32(s.key, p)
	}
	if state, known := s.numbers[string(s.key)]; known {
		return state
	}
	state := int32(len(s.verdicts))
	s.numbers[string(s.key)] = state
	s.members = append(s.members, list...)
	s.ends = append(s.ends, len(s.members))
	var meaning meaning
	last := int32(-1)
	for _, p := range list {
		rule := s.steps[p].rule
		if rule != last {
			s.blame.states[rule]++
			last = rule
		}
		if s.steps[p].accept {
			meaning |= s.meanings[rule]
		}
	}
	s.verdicts = append(s.verdicts, meaning.verdict())
	return state
}

// expand adds the edges of a state.
func (s *subsets) expand(state int) {
	begin := 0
	if state > 0 {
		begin = s.ends[state-1]
	}
	members := s.members[begin:s.ends[state]]
	var common, slash []uint32 // where every byte but "/" leads, and "/"
	s.touched = s.touched[:0]
	for _, p := range members {
		step := &s.steps[p]
		if step.loop == 0 {
			common = append(common, p)
		}
		if step.slash != 0 {
			slash = append(slash, step.slash)
		}
		switch {
		case step.set == 0:
			common = append(common, step.next)
		case step.set > 0:
			for _, class := range s.sets[step.set] {
				if len(s.byClass[class]) == 0 {
					s.touched = append(s.touched, class)
				}
				s.byClass[class] = append(s.byClass[class], step.next)
			}
		}
	}
	rest := int32(-1)
	if len(common) > 0 {
		rest = s.union(common, nil)
	}
	if rest < 0 {
		slices.Sort(s.touched)
		for _, class := range s.touched {
			s.edge(class, s.union(nil, s.byClass[class]))
		}
	} else {
		for class := range s.width {
			switch own := s.byClass[class]; {
			case uint8(class) == s.slash:
			case len(own) == 0:
				s.edge(uint8(class), rest)
			default:
				s.edge(uint8(class), s.union(common, own))
			}
		}
	}
	for _, class := range s.touched {
		s.byClass[class] = s.byClass[class][:0]
	}
	if len(slash) > 0 {
		s.edge(s.slash, s.union(slash, nil))
	}
}

// union returns the state of the positions in both lists.
func (s *subsets) union(a, b []uint32) int32 {
	s.set++
	list := make([]uint32, 0, len(a)+len(b)+4)
	for _, p := range a {
		list = s.enter(list, p)
	}
	for _, p := range b {
		list = s.enter(list, p)
	}
	return s.number(list)
}

func (s *subsets) edge(class uint8, to int32) { s.edges = append(s.edges, edge{class, to}) }
