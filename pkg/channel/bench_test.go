package channel

import (
	"bytes"
	"testing"
)

// benchValues are what the codec is measured with.
func benchValues() map[string]any {
	row := map[string]any{"id": int64(7), "name": "a name of some length", "tags": []any{"a", "b", "c"}, "score": 0.5}
	table := make([]any, 1000)
	for i := range table {
		table[i] = row
	}
	return map[string]any{
		"string 1 kB": string(bytes.Repeat([]byte("x"), 1000)), "row": row, "1000 rows": table,
		"tuples": Tuple{int64(1), Tuple{"a", []byte("b")}}, "array 1 MiB": NDArray{DType: "<f8", Shape: []int{1 << 17}, Order: 'C', Data: make([]byte, 1<<20)},
	}
}

func BenchmarkEncode(b *testing.B) {
	for name, value := range benchValues() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				payload, err := Encode(value, 0)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(payload)))
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, value := range benchValues() {
		payload, err := Encode(value, 0)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, err := Decode(payload, DecodeOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFrames is one small frame written and read.
func BenchmarkFrames(b *testing.B) {
	var wire bytes.Buffer
	w, r := NewWriter(&wire), NewReader(&wire, FromGuest, 1<<20)
	payload := bytes.Repeat([]byte{'S'}, 100)
	for b.Loop() {
		if err := w.Write(Frame{Type: GuestPost, Payload: payload}); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
