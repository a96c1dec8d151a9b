package channel

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Encode describes a value, of the types listed at [Tuple], as a payload. limit
// is the size that it may have, in bytes; 0 means 64 MiB. Errors are
// [ValueError]; a Go value that contains itself is one that is nested too deep.
// What Encode accepts, Decode with default limits accepts.
func Encode(value any, limit int) ([]byte, error) {
	if limit == 0 {
		limit = 64 << 20
	}
	e := &encoder{limits: Limits{}.withDefaults()}
	var payload []byte
	switch v := value.(type) {
	case string:
		if utf8.ValidString(v) {
			payload = append([]byte{'S'}, v...)
		}
	case []byte:
		payload = append([]byte{'Y'}, v...)
	}
	if payload == nil {
		if err := e.value(value, 0); err != nil {
			return nil, err
		}
		payload = e.payload()
	}
	if len(payload) > limit {
		return nil, invalid("this value takes %d bytes: the limit is %d", len(payload), limit)
	}
	if _, err := Decode(payload, DecodeOptions{Limits: Limits{Message: limit}, Classes: func(string) bool { return true }}); err != nil {
		return nil, fmt.Errorf("encoding value: %w", err)
	}
	return payload, nil
}

// encoder builds the JSON text and collects the buffers that it refers to.
type encoder struct {
	limits  Limits
	text    []byte
	buffers [][]byte
}

func (e *encoder) payload() []byte {
	if len(e.buffers) == 0 {
		return append([]byte{'J'}, e.text...)
	}
	head := []byte("[[")
	for i, buffer := range e.buffers {
		if i > 0 {
			head = append(head, ',')
		}
		head = strconv.AppendInt(head, int64(len(buffer)), 10)
	}
	head = append(head, "],"...)
	out := binary.BigEndian.AppendUint32([]byte{'B'}, uint32(len(head)+len(e.text)+1))
	out = append(append(append(out, head...), e.text...), ']')
	for _, buffer := range e.buffers {
		out = append(out, buffer...)
	}
	return out
}

func (e *encoder) value(value any, depth int) error {
	if depth > e.limits.Depth {
		return invalid("nested deeper than %d levels", e.limits.Depth)
	}
	switch v := value.(type) {
	case nil:
		e.text = append(e.text, "null"...)
	case bool:
		e.text = strconv.AppendBool(e.text, v)
	case string:
		return e.str(v)
	case float64:
		return e.float(v)
	case float32:
		return e.float(float64(v))
	case complex128:
		return e.tag("complex", depth, real(v), imag(v))
	case *big.Int:
		return e.bigInt(v)
	case []any:
		return e.list(v, depth)
	case map[string]any:
		return e.object(v, depth)
	default:
		if n, ok := asInt(value); ok {
			return e.bigInt(n)
		}
		return e.special(value, depth)
	}
	return nil
}

// asInt widens Go's integer types.
func asInt(value any) (*big.Int, bool) {
	switch v := value.(type) {
	case int:
		return big.NewInt(int64(v)), true
	case int8:
		return big.NewInt(int64(v)), true
	case int16:
		return big.NewInt(int64(v)), true
	case int32:
		return big.NewInt(int64(v)), true
	case int64:
		return big.NewInt(v), true
	case uint8:
		return big.NewInt(int64(v)), true
	case uint16:
		return big.NewInt(int64(v)), true
	case uint32:
		return big.NewInt(int64(v)), true
	case uint:
		return new(big.Int).SetUint64(uint64(v)), true
	case uint64:
		return new(big.Int).SetUint64(v), true
	}
	return nil, false
}

func (e *encoder) bigInt(n *big.Int) error {
	if n == nil {
		return invalid("a nil *big.Int has no encoding")
	}
	if n.IsInt64() {
		e.text = n.Append(e.text, 10)
		return nil
	}
	return e.tag("int", 0, n.Text(16))
}

func (e *encoder) float(f float64) error {
	switch {
	case f != f:
		return e.tag("float", 0, "nan")
	case math.IsInf(f, 0):
		return e.tag("float", 0, map[bool]string{true: "inf", false: "-inf"}[f > 0])
	}
	start := len(e.text)
	e.text = strconv.AppendFloat(e.text, f, 'g', -1, 64)
	if !slices.ContainsFunc(e.text[start:], func(c byte) bool { return c == '.' || c == 'e' }) {
		e.text = append(e.text, ".0"...) // or it would be an int
	}
	return nil
}

// str writes a string; the bytes of a lone surrogate become its escape.
func (e *encoder) str(s string) error {
	e.text = append(e.text, '"')
	for at := 0; at < len(s); {
		r, size := utf8.DecodeRuneInString(s[at:])
		switch {
		case r == utf8.RuneError && size == 1:
			if len(s)-at < 3 || s[at] != 0xED || s[at+1]&0xE0 != 0xA0 || s[at+2]&0xC0 != 0x80 {
				return invalid("a string that is not UTF-8")
			}
			unit := 0xD000 | uint16(s[at+1]&0x3F)<<6 | uint16(s[at+2]&0x3F)
			e.text = fmt.Appendf(e.text, `\u%04x`, unit)
			size = 3
		case r == '"' || r == '\\':
			e.text = append(e.text, '\\', byte(r))
		case r < 0x20:
			e.text = fmt.Appendf(e.text, `\u%04x`, r)
		default:
			e.text = append(e.text, s[at:at+size]...)
		}
		at += size
	}
	e.text = append(e.text, '"')
	return nil
}

func (e *encoder) list(items []any, depth int) error {
	e.text = append(e.text, '[')
	for i, item := range items {
		if i > 0 {
			e.text = append(e.text, ',')
		}
		if err := e.value(item, depth+1); err != nil {
			return err
		}
	}
	e.text = append(e.text, ']')
	return nil
}

func (e *encoder) object(members map[string]any, depth int) error {
	if _, ok := members["$"]; ok {
		dict := Dict{Class: "dict"}
		for _, key := range sortedKeys(members) {
			dict.Pairs = append(dict.Pairs, Pair{Key: key, Value: members[key]})
		}
		return e.value(dict, depth)
	}
	e.text = append(e.text, '{')
	for i, key := range sortedKeys(members) {
		if i > 0 {
			e.text = append(e.text, ',')
		}
		if err := e.str(key); err != nil {
			return err
		}
		e.text = append(e.text, ':')
		if err := e.value(members[key], depth+1); err != nil {
			return err
		}
	}
	e.text = append(e.text, '}')
	return nil
}

func sortedKeys(members map[string]any) []string {
	keys := make([]string, 0, len(members))
	for key := range members {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (e *encoder) tag(name string, depth int, args ...any) error {
	e.text = append(e.text, `{"$":`...)
	err := e.list(append([]any{name}, args...), depth+1)
	e.text = append(e.text, '}')
	return err
}

func (e *encoder) buffer(data []byte) int {
	e.buffers = append(e.buffers, data)
	return len(e.buffers) - 1
}

func hexOf(id UUID) string { return hex.EncodeToString(id[:]) }
