package confine

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// call is a struct seccomp_data, by words.
type call [16]uint32

// asked are the tests that programs have made.
type asked map[test]bool

// decide runs a program as the kernel does, notes the tests that it makes, and counts its steps.
func decide(program []instruction, data *call, asked asked) (result uint32, steps int) {
	var a uint32
	var of word
	for pc := 0; pc < len(program); steps++ {
		i := program[pc]
		pc++
		switch i.code {
		case opLoad:
			of = word{i.k, 0xffffffff}
			a = data[i.k/4]
		case opAnd:
			of.mask &= i.k
			a &= i.k
		case opJump:
			pc += int(i.k)
		case opReturn:
			return i.k, steps
		case opEqual, opGreater, opAtLeast:
			t := test{i.code, of, i.k}
			asked[t] = true
			if t.holds(a) {
				pc += int(i.jt)
			} else {
				pc += int(i.jf)
			}
		default:
			panic(fmt.Sprintf("instruction %#x at %d", i.code, pc-1))
		}
	}
	panic("the program has no end")
}

// values of a word stand for all: of any other value one of them has the same answers to all tests. Tests ask either whether
// the word is in a range (of which equality, and equality but for the last bits, are cases), or for single bits of it.
func (a asked) values(offset uint32) []uint32 {
	ends := map[uint32]bool{0: true}
	var single uint32
	for t := range a {
		switch tail := ^t.word.mask; {
		case t.word.offset != offset || t.word.mask == 0:
		case tail&(tail+1) == 0:
			for _, end := range []uint32{t.k - 1, t.k, t.k + 1, t.k + tail, t.k + tail + 1} {
				ends[end] = true
			}
		case t.op == opEqual:
			single |= t.word.mask
		default:
			panic(fmt.Sprintf("test %+v is of no kind that is known", t))
		}
	}
	switch {
	case single == 0:
		return slices.Collect(maps.Keys(ends))
	case len(ends) > 1 || bits.OnesCount32(single) > 12:
		panic(fmt.Sprintf("word %d is asked in too many ways", offset))
	}
	out := []uint32{0}
	for bit := range 32 {
		if single&(1<<bit) != 0 {
			for _, value := range slices.Clone(out) {
				out = append(out, value|1<<bit)
			}
		}
	}
	return out
}

// comparison proves that two programs decide the same.
type comparison struct {
	long, short         []instruction
	calls, before, most int
	steps               int
}

// compare compares all calls of a number: with each combination of the values that stand for all others of an argument. Tests
// that were not known before make it begin again, so that none is left out. It returns the tests of the number.
func (c *comparison) compare(data call) (asked, error) {
	found := make(asked)
	for known := -1; known < len(found); {
		known = len(found)
		if err := c.combine(data, 4, found.all(), found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// all are the values of each word.
func (a asked) all() (out [16][]uint32) {
	for i := range out {
		out[i] = a.values(uint32(i) * 4)
	}
	return out
}

func (c *comparison) combine(data call, from int, values [16][]uint32, found asked) error {
	if from < len(data) {
		for _, value := range values[from] {
			data[from] = value
			if err := c.combine(data, from+1, values, found); err != nil {
				return err
			}
		}
		return nil
	}
	want, before := decide(c.long, &data, found)
	got, steps := decide(c.short, &data, found)
	if want != got {
		return fmt.Errorf("call %#x of %#x with %#x: %#x, and was %#x", data[0], data[1], data[4:], got, want)
	}
	c.calls, c.before, c.steps, c.most = c.calls+1, c.before+before, c.steps+steps, max(c.most, steps)
	return nil
}

// prove compares all calls there are.
func (c *comparison) prove() error {
	found, done := make(asked), make(map[[2]uint32]bool)
	for known := -1; known < len(found); {
		known = len(found)
		for _, arch := range found.values(offArch) {
			for _, number := range found.values(offNumber) {
				if done[[2]uint32{number, arch}] {
					continue
				}
				done[[2]uint32{number, arch}] = true
				more, err := c.compare(call{number, arch})
				if err != nil {
					return err
				}
				maps.Copy(found, more)
			}
		}
	}
	return nil
}

func filtersToCompact() map[string]*specs.LinuxSeccomp {
	errno := uint(1)
	filters := bundle.SeccompVariants()
	filters["another"] = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mount", "kill"}, Action: specs.ActErrno, ErrnoRet: &errno},
			{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &errno, Args: []specs.LinuxSeccompArg{{Index: 2, Value: 1 << 33, Op: specs.OpGreaterEqual}}},
		},
	}
	filters["nothing"] = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno, Architectures: []specs.Arch{specs.ArchX86_64}}
	return filters
}

// The short program decides every call as the long one does.
func TestCompactDecidesTheSame(t *testing.T) {
	for name, filter := range filtersToCompact() {
		t.Run(name, func(t *testing.T) {
			long, err := compileLong(filter)
			if err != nil {
				t.Fatal(err)
			}
			c := comparison{long: instructions(long), short: instructions(compact(long))}
			if err := c.prove(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d instructions, and were %d; %d steps at most, %d calls in %d steps, and were %d", len(c.short), len(c.long), c.most, c.calls, c.steps, c.before)
			if len(c.short) > len(c.long) {
				t.Errorf("%d instructions, and were %d", len(c.short), len(c.long))
			}
		})
	}
}

// The comparison finds errors in the short program. A few tests of libseccomp's are of no consequence, such as whether half
// an argument is more than 0 when it was found not to be 0: nothing is to be found there.
func TestCompactComparisonFindsErrors(t *testing.T) {
	long, err := compileLong(bundle.Seccomp())
	if err != nil {
		t.Fatal(err)
	}
	short := instructions(compact(long))
	wrongs, missed := 0, 0
	for i := 1; i < len(short); i += 19 {
		wrong := slices.Clone(short)
		switch at := &wrong[i]; at.code {
		case opEqual, opGreater, opAtLeast:
			at.jt, at.jf = at.jf, at.jt
		case opAnd:
			at.k &= at.k - 1 // one bit is not asked for
		default:
			at.k ^= 4 // the other half of an argument, another result
		}
		c := comparison{long: instructions(long), short: wrong}
		wrongs++
		if !c.fails() {
			missed++
			t.Logf("instruction %d was %+v, and is %+v: nothing was found", i, short[i], wrong[i])
		}
	}
	if missed*10 > wrongs {
		t.Errorf("of %d errors %d were not found", wrongs, missed)
	}
}

func (c *comparison) fails() (failed bool) {
	defer func() {
		if recover() != nil {
			failed = true // it cannot be proved
		}
	}()
	return c.prove() != nil
}

// A program with an instruction that libseccomp does not write stays as it is.
func TestCompactLeavesAlone(t *testing.T) {
	odd := []byte{0x20, 0, 0, 0, 0, 0, 0, 0, 0x44, 0, 0, 0, 1, 0, 0, 0, 0x06, 0, 0, 0, 0, 0, 0, 0} // load, or, return
	if got := compact(odd); !slices.Equal(got, odd) {
		t.Errorf("%v", got)
	}
}
