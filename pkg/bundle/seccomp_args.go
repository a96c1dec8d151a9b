package bundle

import (
	"math"
	"math/bits"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// span is a range of argument values, both ends included.
type span struct{ low, high uint64 }

// only is the span of one value.
func only(v uint64) span { return span{v, v} }

// block is what one SCMP_CMP_MASKED_EQ comparison can hold: all values that
// agree with value in the bits of mask.
type block struct{ mask, value uint64 }

// arg makes the comparison of argument index with the block.
func (b block) arg(index uint) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Value: b.mask, ValueTwo: b.value, Op: specs.OpMaskedEqual}
}

// blocks cuts a span into aligned blocks, as routing tables cut address ranges.
// libseccomp cannot compare one argument twice in one rule (low ≤ x and x ≤ high),
// and masks are the only way around that. All 64 bits are compared: the
// kernel ignores the upper half of an int, a rule that did so too could be passed
// by setting a bit there (CVE-2019-10063).
func blocks(s span) []block {
	var out []block
	for low := s.low; ; {
		size := bits.TrailingZeros64(low) // 64 when low is 0
		for size > 0 && (size == 64 || low+(1<<size)-1 > s.high) {
			size--
		}
		out = append(out, block{mask: ^(uint64(1)<<size - 1), value: low})
		last := low + (1<<size - 1)
		if last >= s.high {
			return out
		}
		low = last + 1
	}
}

// gaps returns the spans that lie between sorted, disjoint spans, without the
// open ends below the first and above the last.
func gaps(spans []span) []span {
	var out []span
	for i := 1; i < len(spans); i++ {
		if spans[i-1].high+1 < spans[i].low {
			out = append(out, span{spans[i-1].high + 1, spans[i].low - 1})
		}
	}
	return out
}

// within returns one comparison per rule; together the rules hold exactly the
// values of the spans.
func within(index uint, spans []span) []specs.LinuxSeccompArg {
	var out []specs.LinuxSeccompArg
	for _, s := range spans {
		switch s.low {
		case s.high:
			out = append(out, specs.LinuxSeccompArg{Index: index, Value: s.low, Op: specs.OpEqualTo})
		case 0:
			out = append(out, specs.LinuxSeccompArg{Index: index, Value: s.high, Op: specs.OpLessEqual})
		default:
			for _, b := range blocks(s) {
				out = append(out, b.arg(index))
			}
		}
	}
	return out
}

// outside returns one comparison per rule; together the rules hold every value
// that no span (sorted, disjoint) holds.
func outside(index uint, spans []span) []specs.LinuxSeccompArg {
	var out []specs.LinuxSeccompArg
	if low := spans[0].low; low > 0 {
		out = append(out, specs.LinuxSeccompArg{Index: index, Value: low, Op: specs.OpLessThan})
	}
	out = append(out, within(index, gaps(spans))...)
	if high := spans[len(spans)-1].high; high < math.MaxUint64 {
		out = append(out, specs.LinuxSeccompArg{Index: index, Value: high, Op: specs.OpGreaterThan})
	}
	return out
}
