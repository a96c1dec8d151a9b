package channel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func frameBytes(size uint32, kind, flags byte, zero uint16, id uint32, payload string) []byte {
	out := binary.BigEndian.AppendUint32(nil, size)
	out = append(out, kind, flags)
	out = binary.BigEndian.AppendUint16(out, zero)
	return append(binary.BigEndian.AppendUint32(out, id), payload...)
}

func TestFramesComeBack(t *testing.T) {
	frames := []Frame{
		{Type: Ready, Payload: []byte(`{}`)},
		{Type: Done, ID: 1},
		{Type: Error, Flags: FlagExec, ID: 1<<32 - 1, Payload: []byte(`{}`)},
		{Type: GuestPost, Payload: bytes.Repeat([]byte("x"), 300_000)},
		{Type: Stdout, Payload: []byte("hi")},
		{Type: Stderr, ID: 7, Payload: bytes.Repeat([]byte("y"), StreamLimit)},
	}
	var wire bytes.Buffer
	w := NewWriter(&wire)
	for _, f := range frames {
		if err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(iotest.HalfReader(&wire), FromGuest, 1<<20)
	for _, want := range frames {
		got, err := r.Read()
		if err != nil || got.Type != want.Type || got.Flags != want.Flags || got.ID != want.ID || !bytes.Equal(got.Payload, want.Payload) {
			t.Fatalf("got %d %d %d %d bytes, %v", got.Type, got.Flags, got.ID, len(got.Payload), err)
		}
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v", err)
	}
}

func TestBrokenFrames(t *testing.T) {
	const message = 1000
	for name, c := range map[string]struct {
		wire []byte
		from Sender
		rule string
	}{
		"unknown type":       {frameBytes(0, 0, 0, 0, 0, ""), FromGuest, "unknown frame type 0"},
		"type of other side": {frameBytes(0, byte(Exec), 0, 0, 1, ""), FromGuest, "unknown frame type 1"},
		"guest type at host": {frameBytes(0, byte(Done), 0, 0, 1, ""), FromHost, "unknown frame type 17"},
		"type 24":            {frameBytes(0, 24, 0, 0, 0, ""), FromGuest, "unknown frame type 24"},
		"flags":              {frameBytes(0, byte(Done), 1, 0, 1, ""), FromGuest, "flags 0x1"},
		"error flags":        {frameBytes(0, byte(Error), 2, 0, 1, ""), FromGuest, "flags 0x2"},
		"reserved":           {frameBytes(0, byte(Done), 0, 1, 1, ""), FromGuest, "reserved"},
		"huge":               {frameBytes(1<<32-1, byte(GuestPost), 0, 0, 0, ""), FromGuest, "4294967295 bytes"},
		"value over limit":   {frameBytes(message+ValueSlack+1, byte(Result), 0, 0, 1, ""), FromGuest, "the limit is 66536"},
		"stream over limit":  {frameBytes(StreamLimit+1, byte(Stdout), 0, 0, 0, ""), FromGuest, "the limit is 65536"},
		"done with payload":  {frameBytes(1, byte(Done), 0, 0, 1, "x"), FromGuest, "the limit is 0"},
		"done without id":    {frameBytes(0, byte(Done), 0, 0, 0, ""), FromGuest, "no request id"},
		"post with id":       {frameBytes(1, byte(GuestPost), 0, 0, 9, "S"), FromGuest, "belongs to no request"},
		"text":               {[]byte("Traceback (most recent call last):"), FromGuest, "reserved"},
		"random":             {bytes.Repeat([]byte{0xff}, 64), FromGuest, "reserved"},
	} {
		_, err := NewReader(bytes.NewReader(c.wire), c.from, message).Read()
		if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), c.rule) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHalfFrames(t *testing.T) {
	whole := frameBytes(3, byte(GuestPost), 0, 0, 0, "Sab")
	for n := 1; n < len(whole); n++ {
		_, err := NewReader(bytes.NewReader(whole[:n]), FromGuest, 100).Read()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
}

// A header may claim 64 MiB; what is held follows what arrives.
func TestClaimedSizeCostsNothing(t *testing.T) {
	wire := frameBytes(64<<20, byte(GuestPost), 0, 0, 0, "only this")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		if _, err := NewReader(bytes.NewReader(wire), FromGuest, 64<<20).Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 2<<20 {
		t.Errorf("ten such frames allocated %d bytes", grown)
	}
}

func TestWriterKeepsFramesWhole(t *testing.T) {
	read, write := io.Pipe()
	w := NewWriter(write)
	var senders sync.WaitGroup
	for i := range 8 {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for n := range 50 {
				payload := bytes.Repeat([]byte{byte(i)}, 1+n*2000)
				if err := w.Write(Frame{Type: GuestPost, Payload: payload}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	go func() { senders.Wait(); write.Close() }()
	r := NewReader(read, FromGuest, 1<<20)
	for count := 0; ; count++ {
		f, err := r.Read()
		if errors.Is(err, io.EOF) && count == 400 {
			return
		}
		if err != nil {
			t.Fatalf("after %d frames: %v", count, err)
		}
		if bytes.Count(f.Payload, f.Payload[:1]) != len(f.Payload) {
			t.Fatal("bytes of two frames are mixed")
		}
	}
}

func TestWriterStopsAfterAnError(t *testing.T) {
	read, write := io.Pipe()
	read.Close()
	w := NewWriter(write)
	for range 2 {
		if err := w.Write(Frame{Type: Done, ID: 1}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	}
}
