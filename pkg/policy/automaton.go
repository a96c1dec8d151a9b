package policy

import "fmt"

// Automaton decides about paths as [DecideFS] does for the rules that it was made
// from, in one step for each byte, however many rules there are. It is minimal and
// numbered in one way: two lists of rules that mean the same for every string
// have equal automata. The exported fields
// are its whole state, in the layout that a kernel program can use as it is.
//
// A run begins in state Start. Byte b leads from state s to
//
//	Table[s*Width + Classes[b]]
//
// and the verdict of state s, an [Access], is Table[s*Width + Width-1]. State 0 is
// the dead one: nothing leads out of it and its verdict is 0.
type Automaton struct {
	Classes [256]uint8 // bytes that no rule tells apart have one class
	Width   int        // entries of one state: one for each class, and the verdict
	Start   uint16
	Table   []uint16
}

// Bounds of an automaton. Patterns with several stars can multiply each other's
// states; such a list of rules is refused rather than served slowly.
const (
	maxStates    = 1 << 16  // of a minimal automaton: a state is two bytes
	maxTable     = 16 << 20 // bytes of a table
	maxSubsets   = 1 << 18  // before minimising
	maxPositions = 1 << 22  // in all subsets together: memory and time
)

// CompileGlobs makes the automaton of a list of file rules. Rules that would
// need more than its bounds are an [*Error] that names the pattern which
// contributes most.
func CompileGlobs(rules []FSRule) (*Automaton, error) {
	for _, r := range rules {
		if err := r.check(); err != nil {
			err.Key = "fs"
			return nil, err
		}
	}
	a, err := compileGlobs(rules, plainMeanings(rules))
	if err != nil {
		return nil, err
	}
	return a, nil
}

func compileGlobs(rules []FSRule, meanings []meaning) (*Automaton, *Error) {
	if len(rules) == 0 {
		return &Automaton{Width: 2, Table: make([]uint16, 2)}, nil
	}
	n := newNFA(rules, meanings)
	d, err := n.determinise()
	if err != nil {
		return nil, err
	}
	a, err := d.minimise().table(n.classes, n.width)
	if err != nil {
		return nil, err
	}
	return a.mergeClasses(), nil
}

// States returns the number of states, the dead one included.
func (a *Automaton) States() int { return len(a.Table) / a.Width }

// Size returns the bytes of the table.
func (a *Automaton) Size() int { return 2 * len(a.Table) }

// Step returns the state after byte b in state s.
func (a *Automaton) Step(s uint16, b byte) uint16 {
	return a.Table[int(s)*a.Width+int(a.Classes[b])]
}

// Verdict returns what is decided if the path ends in state s.
func (a *Automaton) Verdict(s uint16) Access { return Access(a.Table[int(s)*a.Width+a.Width-1]) }

// Decide returns what the rules say about path, which is absolute and clean.
func (a *Automaton) Decide(path string) Access {
	s := a.Start
	for i := 0; i < len(path) && s != 0; i++ {
		s = a.Step(s, path[i])
	}
	return a.Verdict(s)
}

// table writes a minimal automaton out.
func (d *dfa) table(classes [256]uint8, width int) (*Automaton, *Error) {
	states := len(d.verdicts) + 1
	if states > maxStates || 2*states*(width+2) > maxTable { // the kernel adds a column
		return nil, d.explosion(fmt.Sprintf("%d states in %d bytes", states, 2*states*(width+1)))
	}
	a := &Automaton{Classes: classes, Width: width + 1, Start: uint16(d.start + 1), Table: make([]uint16, states*(width+1))}
	for s, verdict := range d.verdicts {
		row := a.Table[(s+1)*a.Width : (s+2)*a.Width]
		row[width] = uint16(verdict)
		for _, e := range d.edges[d.first[s]:d.first[s+1]] {
			row[e.class] = uint16(e.to + 1)
		}
	}
	return a, nil
}

// mergeClasses gives one class to bytes that the minimal automaton does not tell
// apart, and numbers the classes in the order of their first bytes.
func (a *Automaton) mergeClasses() *Automaton {
	columns := make(map[string]uint8)
	var representative []int // by new class: an old one
	merged := make([]int, a.Width-1)
	for i := range merged {
		merged[i] = -1
	}
	out := &Automaton{Start: a.Start}
	column := make([]byte, 2*a.States())
	for b, old := range a.Classes {
		if merged[old] < 0 {
			for s := range a.States() {
				next := a.Table[s*a.Width+int(old)]
				column[2*s], column[2*s+1] = byte(next), byte(next>>8)
			}
			class, known := columns[string(column)]
			if !known {
				class = uint8(len(representative))
				columns[string(column)] = class
				representative = append(representative, int(old))
			}
			merged[old] = int(class)
		}
		out.Classes[b] = uint8(merged[old])
	}
	out.Width = len(representative) + 1
	out.Table = make([]uint16, a.States()*out.Width)
	for s := range a.States() {
		row := out.Table[s*out.Width:]
		for class, old := range representative {
			row[class] = a.Table[s*a.Width+old]
		}
		row[out.Width-1] = a.Table[s*a.Width+a.Width-1]
	}
	return out
}
