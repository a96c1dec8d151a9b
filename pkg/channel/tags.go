package channel

import "math/big"

// tagReader turns {"$": [tag, argument...]} into a value.
type tagReader struct {
	limits  Limits
	classes func(string) bool
	buffers [][]byte
	taken   []bool
	used    int
	hash    hasher
}

func newTagReader(limits Limits, classes func(string) bool) *tagReader {
	return &tagReader{limits: limits, classes: classes, hash: newHasher()}
}

// tagged is a call of one tag: a reader takes its arguments in order; the first
// error stays.
type tagged struct {
	*tagReader
	name string
	args []any
	err  error
}

func (t *tagReader) read(p *parser, members map[string]any) (any, error) {
	body, ok := members["$"].([]any)
	if !ok || len(members) != 1 || len(body) == 0 {
		return nil, invalid(`an object with the key "$" must be {"$": [tag, argument...]}`)
	}
	name, ok := body[0].(string)
	if !ok {
		return nil, invalid(`a tag is a string`)
	}
	arity, weight, read := tagOf(name)
	if read == nil {
		return nil, invalid("unknown tag %.40q", name)
	}
	if len(body) != arity+1 {
		return nil, invalid("%s takes %d arguments, not %d", name, arity, len(body)-1)
	}
	if err := p.charge(weight); err != nil {
		return nil, err
	}
	call := &tagged{tagReader: t, name: name, args: body[1:]}
	value := read(call)
	if call.err != nil {
		return nil, call.err
	}
	return value, nil
}

// tagOf is the table of tags: the number of arguments, the weight (what a value
// costs in Python beyond its JSON, in units of some 64 bytes) and the reader.
func tagOf(name string) (arity, weight int, read func(*tagged) any) {
	switch name {
	case "tuple":
		return 1, 0, func(t *tagged) any { return Tuple(t.list(0)) }
	case "set", "frozenset":
		return 1, 3, readSet
	case "dict", "OrderedDict":
		return 1, map[string]int{"dict": 3, "OrderedDict": 6}[name], readDict
	case "Counter":
		return 1, 4, readDict
	case "defaultdict":
		return 2, 4, readDefaultDict
	case "deque":
		return 2, 12, readDeque
	case "bytes":
		return 1, 3, func(t *tagged) any { return t.buffer(0) }
	case "bytearray":
		return 1, 3, func(t *tagged) any { return ByteArray(t.buffer(0)) }
	case "complex":
		return 2, 0, func(t *tagged) any { return complex(t.float(0), t.float(1)) }
	case "float":
		return 1, 0, readFloat
	case "int":
		return 1, 0, readInt
	case "range":
		return 3, 1, readRange
	case "slice":
		return 3, 1, readSlice
	case "Decimal":
		return 3, 2, readDecimal
	case "Fraction":
		return 2, 3, readFraction
	case "UUID":
		return 1, 2, readUUID
	case "PurePosixPath", "PureWindowsPath":
		return 1, 8, func(t *tagged) any { return Path{Windows: t.name == "PureWindowsPath", Path: t.str(0)} }
	case "exception":
		return 2, 3, readException
	case "ndarray":
		return 4, 4, readNDArray
	case "class":
		return 2, 4, readClass
	}
	return timeTagOf(name)
}

func timeTagOf(name string) (arity, weight int, read func(*tagged) any) {
	switch name {
	case "date":
		return 3, 0, func(t *tagged) any { return t.date() }
	case "time":
		return 6, 0, func(t *tagged) any { return t.time(0) }
	case "datetime":
		return 9, 0, func(t *tagged) any { return DateTime{Date: t.date(), Time: t.time(3)} }
	case "timedelta":
		return 3, 0, readTimeDelta
	case "timezone":
		return 2, 1, readTimeZone
	}
	return 0, 0, nil
}

func (t *tagged) fail(format string, args ...any) {
	if t.err == nil {
		t.err = invalid(format, args...)
	}
}

func (t *tagged) list(i int) []any {
	list, ok := t.args[i].([]any)
	if !ok {
		t.fail("%s: argument %d is not a list", t.name, i)
	}
	return list
}

func (t *tagged) str(i int) string {
	s, ok := t.args[i].(string)
	if !ok {
		t.fail("%s: argument %d is not a string", t.name, i)
	}
	return s
}

func (t *tagged) float(i int) float64 {
	f, ok := t.args[i].(float64)
	if !ok {
		t.fail("%s: argument %d is not a float", t.name, i)
	}
	return f
}

// integer is an int of any size.
func (t *tagged) integer(i int) *big.Int {
	switch n := t.args[i].(type) {
	case int64:
		return big.NewInt(n)
	case *big.Int:
		return n
	}
	t.fail("%s: argument %d is not an int", t.name, i)
	return new(big.Int)
}

// within is an int from low to high.
func (t *tagged) within(i int, low, high int64) int64 {
	n := t.integer(i)
	if t.err == nil && (!n.IsInt64() || n.Int64() < low || n.Int64() > high) {
		t.fail("%s: argument %d is not within %d to %d", t.name, i, low, high)
	}
	if t.err != nil {
		return low
	}
	return n.Int64()
}

func (t *tagged) buffer(i int) []byte {
	if t.taken == nil {
		t.taken = make([]bool, len(t.buffers))
	}
	index, ok := t.args[i].(int64)
	if !ok || index < 0 || index >= int64(len(t.buffers)) {
		t.fail("no such buffer")
		return nil
	}
	if t.taken[index] {
		t.fail("a buffer is used twice")
		return nil
	}
	t.taken[index] = true
	t.used++
	return t.buffers[index]
}

func (t *tagged) pairs(i int) []Pair {
	list := t.list(i)
	pairs := make([]Pair, 0, len(list))
	keys := make([]any, 0, len(list))
	for _, item := range list {
		pair, ok := item.([]any)
		if !ok || len(pair) != 2 {
			t.fail("pairs must be [[key, value], ...]")
			return nil
		}
		pairs = append(pairs, Pair{Key: pair[0], Value: pair[1]})
		keys = append(keys, pair[0])
	}
	t.keys(keys)
	return pairs
}

func (t *tagged) keys(keys []any) {
	if t.err == nil {
		t.err = t.hash.checkKeys(keys, t.limits)
	}
}
