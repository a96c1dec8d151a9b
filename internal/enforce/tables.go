package enforce

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Verdict bits beside those of [policy.Access]; path.h has the same.
const (
	mayList = 32 // a directory on the way to something that may be read
	mayMove = 64 // a directory with nothing below it that may not be written
)

// headSize is the size of struct table_head of path.h.
const headSize = 8 + 256

// tableSizes are the entries that a table of path.h can have, by its size number.
func tableSizes() []int { return []int{1 << 13, 1 << 16, 1 << 19, 1 << 23} }

// tableName is how a guest's entry names its table.
type tableName struct {
	id   [16]byte // digest of the table: equal rules have one
	size uint32   // index in tableSizes
}

// pathTable is an automaton in the layout of path.h.
type pathTable struct {
	tableName
	data []byte
}

// newPathTable lays an automaton out for the kernel: byte 0 leads from each state
// to itself, so that the matcher can begin early, and the verdicts of directories
// say what they lead to.
func newPathTable(a *policy.Automaton) (pathTable, error) {
	states, width := a.States(), a.Width+1
	var t pathTable
	for ; t.size < uint32(len(tableSizes())) && states*width > tableSizes()[t.size]; t.size++ {
	}
	if t.size == uint32(len(tableSizes())) {
		return t, fmt.Errorf("an automaton of %d states is larger than the kernel's tables", states)
	}
	t.data = make([]byte, headSize+2*tableSizes()[t.size])
	put := func(at int, v uint16) { binary.NativeEndian.PutUint16(t.data[at:], v) }
	leads, blocked := reach(a)
	put(0, a.Start)
	put(2, uint16(width))
	root := a.Step(a.Start, '/')
	verdict := uint16(a.Verdict(root))
	if leads.inside[root] {
		verdict |= mayList
	}
	put(4, verdict)
	copy(t.data[8:], a.Classes[:])
	t.data[8] = uint8(a.Width - 1)
	for s := range states {
		row := headSize + 2*s*width
		for class := range a.Width - 1 {
			put(row+2*class, a.Table[s*a.Width+class])
		}
		put(row+2*(a.Width-1), uint16(s))
		verdict, below := uint16(a.Verdict(uint16(s))), a.Step(uint16(s), '/')
		if leads.inside[below] && verdict&uint16(policy.Denied) == 0 {
			verdict |= mayList
		}
		if verdict&uint16(policy.MayWrite) != 0 && !blocked.inside[below] {
			verdict |= mayMove
		}
		put(row+2*(width-1), verdict)
	}
	digest := sha256.Sum256(t.data)
	copy(t.id[:], digest[:])
	return t, nil
}

// reachable says for each state of an automaton whether a path of some kind ends
// in it or in a state that it leads to; inside is for a path that has just had a
// slash, and so cannot end there or have another.
type reachable struct{ here, inside []bool }

// reach finds the states that lead to paths which may be read, and to paths which
// may not be written.
func reach(a *policy.Automaton) (leads, blocked reachable) {
	states, slash := a.States(), int(a.Classes['/'])
	leads, blocked = newReachable(states), newReachable(states)
	var open, closed []int32
	for s := range states {
		verdict := a.Verdict(uint16(s))
		if verdict&policy.MayRead != 0 {
			leads.here[s] = true
			open = append(open, int32(s)<<1)
		}
		if verdict&policy.MayWrite == 0 {
			blocked.here[s] = true
			closed = append(closed, int32(s)<<1)
		}
		for class := range a.Width - 1 { // what no rule matches may not be written
			if a.Table[s*a.Width+class] != 0 {
				continue
			}
			blocked.here[s] = true
			closed = append(closed, int32(s)<<1)
			if class != slash {
				blocked.inside[s] = true
				closed = append(closed, int32(s)<<1|1)
			}
		}
	}
	edges := newBackwards(a)
	edges.spread(leads, open)
	edges.spread(blocked, closed)
	return leads, blocked
}

func newReachable(states int) reachable {
	return reachable{make([]bool, states), make([]bool, states)}
}

// backwards is the edges of an automaton by the state that they lead to, without
// those to the dead one. An edge is the state that it leaves, twice, and one more if a
// slash leads along it.
type backwards struct {
	first []int32 // by state
	edges []int32
}

func newBackwards(a *policy.Automaton) backwards {
	states, slash := a.States(), int(a.Classes['/'])
	each := func(do func(from, class, to int)) {
		for s := range states {
			for class := range a.Width - 1 {
				if to := int(a.Table[s*a.Width+class]); to != 0 {
					do(s, class, to)
				}
			}
		}
	}
	b := backwards{first: make([]int32, states+1)}
	each(func(_, _, to int) { b.first[to+1]++ })
	for s := range states {
		b.first[s+1] += b.first[s]
	}
	next := slices.Clone(b.first)
	b.edges = make([]int32, b.first[states])
	each(func(s, class, to int) {
		edge := int32(s) << 1
		if class == slash {
			edge |= 1
		}
		b.edges[next[to]] = edge
		next[to]++
	})
	return b
}

// spread adds to r all that leads to work: states, twice, and one more for the one
// that is inside, behind a slash.
func (b backwards) spread(r reachable, work []int32) {
	for len(work) > 0 {
		node := work[len(work)-1]
		work = work[:len(work)-1]
		to, inside := node>>1, node&1
		for _, edge := range b.edges[b.first[to]:b.first[to+1]] {
			s, bySlash := edge>>1, edge&1
			if bySlash != inside {
				continue
			}
			if !r.here[s] {
				r.here[s] = true
				work = append(work, s<<1)
			}
			if bySlash == 0 && !r.inside[s] {
				r.inside[s] = true
				work = append(work, s<<1|1)
			}
		}
	}
}
