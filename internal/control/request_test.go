package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"testing"
	"unicode/utf8"
)

// FuzzDecodeObject compares with a reader of single tokens, which sees each key.
func FuzzDecodeObject(f *testing.F) {
	for _, seed := range []string{
		`{"id":1,"op":"list"}`, `{"id":1,"id":1}`, `{"id":1,"\u0069d":1}`, `{"a":{"a":[{"a":1},{"a":":"}]},"b":"\\\":{"}`,
		`{}`, `null`, `[]`, ` {"a" : null } `, `{"a":1}x`, `{"a":1}{"b":2}`, "{\"\xff\":1}", `{"":1,"":2}`, `{"a:":1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := decodeObject(data)
		wanted, errWanted := decodeByTokens(data)
		if (err == nil) != (errWanted == nil) {
			t.Fatalf("%q: %v, and by tokens %v", data, err, errWanted)
		}
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: %v", data, err)
		}
		if !maps.EqualFunc(found, wanted, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			t.Errorf("%q: %q, and by tokens %q", data, found, wanted)
		}
	})
}

func decodeByTokens(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: the request is not UTF-8", ErrProtocol)
	}
	broken := func(err error) error {
		return fmt.Errorf("%w: the request is not a JSON object: %w", ErrProtocol, err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if token, err := d.Token(); err != nil {
		return nil, broken(err)
	} else if token != json.Delim('{') {
		return nil, broken(fmt.Errorf("it begins with %v", token))
	}
	fields := make(map[string]json.RawMessage)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, broken(err)
		}
		key, _ := token.(string)
		if _, twice := fields[key]; twice {
			return nil, fmt.Errorf("%w: key %q is given twice", ErrProtocol, key)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, broken(err)
		}
		fields[key] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, broken(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the request's object", ErrProtocol)
	}
	return fields, nil
}
