package channel

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// DecodeOptions says what Decode accepts.
type DecodeOptions struct {
	Limits  Limits
	Classes func(name string) bool // classes opted in to; nil: none
}

// Decode builds the value that a payload describes, as the types listed at
// [Tuple]. []byte, ByteArray and NDArray share memory with data. Errors are
// [ValueError].
func Decode(data []byte, options DecodeOptions) (any, error) {
	limits := options.Limits.withDefaults()
	if len(data) > limits.Message {
		return nil, invalid("a message of %d bytes: the limit is %d", len(data), limits.Message)
	}
	if len(data) == 0 {
		return nil, invalid("an empty message")
	}
	rest := data[1:]
	switch data[0] {
	case 'S':
		if !utf8.Valid(rest) {
			return nil, invalid("a string that is not UTF-8")
		}
		return string(rest), nil
	case 'Y':
		return rest, nil
	case 'J':
		p, err := newParser(rest, limits, options.Classes)
		if err != nil {
			return nil, err
		}
		return p.document()
	case 'B':
		return decodeWithBuffers(rest, limits, options.Classes)
	}
	return nil, invalid("unknown first byte %#02x", data[0])
}

func newParser(text []byte, limits Limits, classes func(string) bool) (*parser, error) {
	if !utf8.Valid(text) {
		return nil, invalid("JSON that is not UTF-8")
	}
	return &parser{text: string(text), tags: newTagReader(limits, classes)}, nil
}

func decodeWithBuffers(data []byte, limits Limits, classes func(string) bool) (any, error) {
	if len(data) < 4 {
		return nil, invalid("a truncated header of buffers")
	}
	length := int64(binary.BigEndian.Uint32(data))
	data = data[4:]
	if length > int64(len(data)) {
		return nil, invalid("the JSON is longer than the message")
	}
	p, err := newParser(data[:length], limits, classes)
	if err != nil {
		return nil, err
	}
	if p.tags.buffers, err = cutBuffers(p.text, data[length:], limits); err != nil {
		return nil, err
	}
	value, err := p.document()
	if err != nil {
		return nil, err
	}
	document, ok := value.([]any)
	if !ok || len(document) != 2 {
		return nil, invalid("a message with buffers is [sizes, value]")
	}
	if p.tags.used != len(p.tags.buffers) {
		return nil, invalid("a buffer is not used")
	}
	return document[1], nil
}

// cutBuffers reads the sizes that begin the text and cuts rest accordingly.
// Every byte belongs to one buffer: they cannot overlap, whatever is claimed.
func cutBuffers(text string, rest []byte, limits Limits) ([][]byte, error) {
	end := strings.IndexByte(text, ']')
	if !strings.HasPrefix(text, "[[") || end < 0 || !strings.HasPrefix(text[end:], "],") {
		return nil, invalid("a message with buffers must begin with their sizes")
	}
	p := &parser{text: text[1 : end+1], tags: newTagReader(limits, nil)}
	found, err := p.document()
	if err != nil {
		return nil, err
	}
	sizes, _ := found.([]any)
	if len(sizes) == 0 {
		return nil, invalid("a message with buffers has none")
	}
	buffers := make([][]byte, len(sizes))
	for i, found := range sizes {
		size, ok := found.(int64)
		if !ok || size < 0 || size > int64(len(rest)) {
			return nil, invalid("a buffer lies outside the message")
		}
		buffers[i], rest = rest[:size:size], rest[size:]
	}
	if len(rest) != 0 {
		return nil, invalid("%d bytes belong to no buffer", len(rest))
	}
	return buffers, nil
}
