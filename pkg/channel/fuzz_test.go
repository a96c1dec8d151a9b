package channel

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzReader reads whatever a guest may write: it ends with EOF, half a frame or
// a protocol error, and what was read can be written again.
func FuzzReader(f *testing.F) {
	f.Add(frameBytes(2, byte(Ready), 0, 0, 0, "{}"))
	f.Add(append(frameBytes(0, byte(Done), 0, 0, 1, ""), frameBytes(3, byte(Stdout), 0, 0, 0, "hi\n")...))
	f.Add(frameBytes(1<<31, byte(GuestPost), 0, 0, 0, "S"))
	f.Add([]byte("garbage that is no frame at all"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := NewReader(bytes.NewReader(wire), FromGuest, 1<<16)
		var again bytes.Buffer
		w := NewWriter(&again)
		for {
			frame, err := r.Read()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrProtocol) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(wire, again.Bytes()) {
			t.Fatalf("%q was read as %q", wire, again.Bytes())
		}
	})
}

// FuzzDecode decodes whatever a guest may send: a value or a ValueError, and a
// value can be sent back.
func FuzzDecode(f *testing.F) {
	for _, payload := range corpus(f) {
		if len(payload) < 4000 {
			f.Add(payload)
		}
	}
	options := DecodeOptions{Classes: func(string) bool { return true }}
	f.Fuzz(func(t *testing.T, payload []byte) {
		value, err := Decode(payload, options)
		if err != nil {
			if !errors.Is(err, ErrValue) {
				t.Fatal(err)
			}
			return
		}
		again, err := Encode(value, 0)
		if err != nil {
			t.Fatalf("%#v cannot be sent back: %v", value, err)
		}
		if _, err := Decode(again, options); err != nil {
			t.Fatalf("%q, sent back as %q: %v", payload, again, err)
		}
	})
}

// FuzzReports reads the JSON frames of a guest.
func FuzzReports(f *testing.F) {
	f.Add([]byte(`{"python":"3.11.2","pid":1,"protocol":2}`))
	f.Add([]byte(`{"type":"E","module":"m","qualname":"E","message":"","traceback":"","args":[1]}`))
	f.Add([]byte(`{"output":"cut","limit":5}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		_, ready := ParseReady(payload)
		_, failure := ParseError(payload)
		_, notice := ParseNotice(payload)
		for _, err := range []error{ready, failure, notice} {
			if err != nil && !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
		}
	})
}
