package channel

import (
	"errors"
	"net"
	"testing"
)

// A lower limit holds for what begins behind that which was under way, but for one value;
// a higher one as soon as there is something that it lets in.
func TestSetLimit(t *testing.T) {
	host, guest := socketPair(t)
	r := NewSocketReader(host, 1<<20)
	w := NewWriter(guest)
	send := func(sizes ...int) {
		for _, size := range sizes {
			if err := w.Write(Frame{Type: GuestPost, Payload: make([]byte, size)}); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}
	const small, middle, large = 10, 100 << 10, 150 << 10
	read := func(want int) {
		t.Helper()
		if f, err := r.Read(); err != nil || len(f.Payload) != want {
			t.Fatalf("%d bytes, %v; want %d", len(f.Payload), err, want)
		}
	}
	send(small, middle) // under way: they fit into the socket
	r.SetLimit(1 << 10)
	read(small)
	read(middle)
	go send(small, middle, small, middle, large, small, large, small, large)
	read(small)
	read(middle) // the one
	read(small)
	heard := 0
	r.Hear(func() {
		if heard++; heard == 1 {
			r.SetLimit(1 << 20)
		}
	})
	read(middle)
	read(large)
	read(small)
	read(large)
	r.SetLimit(90 << 10)
	r.SetLimit(50 << 10) // two at once let in one value, as one does
	go send(large, large, large)
	read(small)
	var err error
	for n := 0; err == nil; n++ {
		if n > 4 { // one was under way before, one is let in; the reader cannot tell how many more were
			t.Fatal("the limit is of no effect")
		}
		_, err = r.Read()
	}
	if !errors.Is(err, ErrProtocol) || heard != 2 {
		t.Errorf("a value that is too large: %v, after news were asked for %d times", err, heard)
	}
}
