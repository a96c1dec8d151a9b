package channel

import (
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parser reads one JSON text and turns tagged objects into values on the way,
// innermost first. It accepts exactly what CPython's C scanner accepts: no
// space around the document, no NaN, big ints, lone surrogates in escapes.
type parser struct {
	text    string
	at      int
	depth   int
	objects int // values, keys and weights so far
	tags    *tagReader
}

func (p *parser) document() (any, error) {
	value, err := p.value()
	if err != nil {
		return nil, err
	}
	if p.at != len(p.text) {
		return nil, invalid("%d bytes after the JSON document", len(p.text)-p.at)
	}
	return value, nil
}

func (p *parser) malformed() error { return invalid("malformed JSON at byte %d", p.at) }

func (p *parser) charge(n int) error {
	p.objects += n
	if limit := p.tags.limits.Objects; p.objects > limit {
		return invalid("more than %d objects", limit)
	}
	return nil
}

func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next is the byte at the current place, or 0 at the end.
func (p *parser) next() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) value() (any, error) {
	if err := p.charge(1); err != nil {
		return nil, err
	}
	switch c := p.next(); {
	case c == '"':
		return p.str()
	case c == '[':
		return p.nested(p.array)
	case c == '{':
		return p.nested(p.object)
	case c == '-' || (c >= '0' && c <= '9'):
		return p.number()
	}
	return p.word()
}

func (p *parser) word() (any, error) {
	rest := p.text[p.at:]
	switch {
	case strings.HasPrefix(rest, "null"):
		p.at += 4
		return nil, nil
	case strings.HasPrefix(rest, "true"):
		p.at += 4
		return true, nil
	case strings.HasPrefix(rest, "false"):
		p.at += 5
		return false, nil
	}
	return nil, p.malformed()
}

func (p *parser) nested(read func() (any, error)) (any, error) {
	p.depth++
	if limit := p.tags.limits.Depth; p.depth > limit {
		return nil, invalid("nested deeper than %d levels", limit)
	}
	p.at++
	p.space()
	value, err := read()
	p.depth--
	return value, err
}

func (p *parser) array() (any, error) {
	items := []any{}
	if p.next() == ']' {
		p.at++
		return items, nil
	}
	for {
		item, err := p.value()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		p.space()
		switch p.next() {
		case ']':
			p.at++
			return items, nil
		case ',':
			p.at++
			p.space()
		default:
			return nil, p.malformed()
		}
	}
}

func (p *parser) object() (any, error) {
	members := map[string]any{}
	if p.next() == '}' {
		p.at++
		return members, nil
	}
	for {
		if err := p.member(members); err != nil {
			return nil, err
		}
		p.space()
		switch p.next() {
		case '}':
			p.at++
			if _, tagged := members["$"]; tagged {
				return p.tags.read(p, members)
			}
			return members, nil
		case ',':
			p.at++
			p.space()
		default:
			return nil, p.malformed()
		}
	}
}

func (p *parser) member(members map[string]any) error {
	if p.next() != '"' {
		return p.malformed()
	}
	if err := p.charge(1); err != nil {
		return err
	}
	key, err := p.str()
	if err != nil {
		return err
	}
	p.space()
	if p.next() != ':' {
		return p.malformed()
	}
	p.at++
	p.space()
	value, err := p.value()
	if err != nil {
		return err
	}
	members[key] = value
	return nil
}

func (p *parser) digits() int {
	start := p.at
	for c := p.next(); c >= '0' && c <= '9'; c = p.next() {
		p.at++
	}
	return p.at - start
}

func (p *parser) number() (any, error) {
	start := p.at
	if p.next() == '-' {
		p.at++
	}
	var whole int
	if p.next() == '0' {
		p.at++
		whole = 1
	} else if whole = p.digits(); whole == 0 {
		return nil, p.malformed()
	}
	isInt := true
	if mark := p.at; p.next() == '.' {
		p.at++
		if p.digits() == 0 {
			p.at = mark
			return nil, p.malformed()
		}
		isInt = false
	}
	if c := p.next(); c == 'e' || c == 'E' {
		p.at++
		if c := p.next(); c == '+' || c == '-' {
			p.at++
		}
		if p.digits() == 0 {
			return nil, p.malformed()
		}
		isInt = false
	}
	token := p.text[start:p.at]
	if !isInt {
		f, _ := strconv.ParseFloat(token, 64) // out of range is infinite, as in Python
		return f, nil
	}
	if n, err := strconv.ParseInt(token, 10, 64); err == nil {
		return n, nil
	}
	if whole > plainDigits {
		return nil, invalid("an int of %d decimal digits: the limit is %d", whole, plainDigits)
	}
	n, _ := new(big.Int).SetString(token, 10)
	return n, nil
}

// str reads a string, of which the opening quote is at the current place.
func (p *parser) str() (string, error) {
	p.at++
	start := p.at
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			return strings.Clone(p.text[start : p.at-1]), nil // not all of the text
		case c == '\\':
			return p.escaped([]byte(p.text[start:p.at]))
		case c < 0x20:
			return "", p.malformed()
		}
	}
	return "", p.malformed()
}

func (p *parser) escaped(out []byte) (string, error) {
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch {
		case c == '"':
			p.at++
			return string(out), nil
		case c < 0x20:
			return "", p.malformed()
		case c != '\\':
			out = append(out, c)
			p.at++
		default:
			unit, err := p.escape()
			if err != nil {
				return "", err
			}
			out = appendUnit(out, unit)
		}
	}
	return "", p.malformed()
}

// escape reads one escape sequence, or two that make a surrogate pair.
func (p *parser) escape() (rune, error) {
	p.at++
	c := p.next()
	p.at++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, p.malformed()
	}
	high, err := p.hex4()
	if err != nil || high < 0xD800 || high > 0xDBFF {
		return high, err
	}
	if len(p.text)-p.at > 6 && p.text[p.at] == '\\' && p.text[p.at+1] == 'u' {
		mark := p.at
		p.at += 2
		low, err := p.hex4()
		if err != nil {
			return 0, err
		}
		if low >= 0xDC00 && low <= 0xDFFF {
			return 0x10000 + (high-0xD800)<<10 + (low - 0xDC00), nil
		}
		p.at = mark
	}
	return high, nil
}

func (p *parser) hex4() (rune, error) {
	if len(p.text)-p.at < 4 {
		return 0, p.malformed()
	}
	var unit rune
	for range 4 {
		c := p.text[p.at]
		switch {
		case c >= '0' && c <= '9':
			unit = unit<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			unit = unit<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			unit = unit<<4 | rune(c-'A'+10)
		default:
			return 0, p.malformed()
		}
		p.at++
	}
	return unit, nil
}

// appendUnit appends a code point, a surrogate too: three bytes, as WTF-8 does.
func appendUnit(out []byte, unit rune) []byte {
	if unit >= 0xD800 && unit <= 0xDFFF {
		return append(out, 0xE0|byte(unit>>12), 0x80|byte(unit>>6)&0x3F, 0x80|byte(unit)&0x3F)
	}
	return utf8.AppendRune(out, unit)
}
