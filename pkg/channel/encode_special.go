package channel

import "math/big"

// special writes the values that need a tag.
func (e *encoder) special(value any, depth int) error {
	switch v := value.(type) {
	case []byte:
		return e.tag("bytes", depth, e.buffer(v))
	case ByteArray:
		return e.tag("bytearray", depth, e.buffer(v))
	case Tuple:
		return e.tag("tuple", depth, orEmpty(v))
	case Dict:
		return e.dict(v, depth)
	case Set:
		return e.tag(map[bool]string{true: "frozenset", false: "set"}[v.Frozen], depth, orEmpty(v.Items))
	case Deque:
		var maxLen any
		if v.MaxLen >= 0 {
			maxLen = v.MaxLen
		}
		return e.tag("deque", depth, orEmpty(v.Items), maxLen)
	case Range:
		return e.tag("range", depth, v.Start, v.Stop, v.Step)
	case Slice:
		return e.tag("slice", depth, v.Start, v.Stop, v.Step)
	case Decimal:
		return e.decimal(v, depth)
	case *big.Rat:
		if v == nil {
			return invalid("a nil *big.Rat has no encoding")
		}
		return e.tag("Fraction", depth, v.Num(), v.Denom())
	case UUID:
		return e.tag("UUID", depth, hexOf(v))
	case Path:
		return e.tag(map[bool]string{true: "PureWindowsPath", false: "PurePosixPath"}[v.Windows], depth, v.Path)
	case Exception:
		return e.tag("exception", depth, v.Type, orEmpty(v.Args))
	case Instance:
		return e.tag("class", depth, v.Class, orEmpty(v.Args))
	case NDArray:
		shape := make([]any, len(v.Shape))
		for i, n := range v.Shape {
			shape[i] = n
		}
		return e.tag("ndarray", depth, v.DType, shape, string(v.Order), e.buffer(v.Data))
	}
	return e.moment(value, depth)
}

// moment writes the types of Python's datetime module.
func (e *encoder) moment(value any, depth int) error {
	switch v := value.(type) {
	case Date:
		return e.tag("date", depth, v.args()...)
	case Time:
		return e.tag("time", depth, v.args()...)
	case DateTime:
		return e.tag("datetime", depth, append(v.Date.args(), v.Time.args()...)...)
	case TimeDelta:
		return e.tag("timedelta", depth, v.Days, v.Seconds, v.Microseconds)
	case TimeZone:
		var name any
		if v.HasName {
			name = v.Name
		}
		return e.tag("timezone", depth, v.Offset, name)
	}
	return invalid("a value of Go type %T has no encoding: use the types listed at channel.Tuple", value)
}

func (d Date) args() []any { return []any{d.Year, d.Month, d.Day} }

func (t Time) args() []any {
	var zone any
	if t.Zone != nil {
		zone = *t.Zone
	}
	return []any{t.Hour, t.Minute, t.Second, t.Microsecond, t.Fold, zone}
}

func (e *encoder) dict(d Dict, depth int) error {
	pairs := make([]any, len(d.Pairs))
	for i, pair := range d.Pairs {
		pairs[i] = []any{pair.Key, pair.Value}
	}
	if d.Class != "defaultdict" {
		return e.tag(d.Class, depth, pairs)
	}
	var factory any
	if d.Factory != "" {
		factory = d.Factory
	}
	return e.tag(d.Class, depth, factory, pairs)
}

func (e *encoder) decimal(d Decimal, depth int) error {
	sign := 0
	if d.Negative {
		sign = 1
	}
	if d.Special != "" {
		return e.tag("Decimal", depth, sign, d.Digits, d.Special)
	}
	return e.tag("Decimal", depth, sign, d.Digits, d.Exponent)
}

// orEmpty makes a list of items: nil is one too.
func orEmpty(items []any) []any {
	if items == nil {
		return []any{}
	}
	return items
}
