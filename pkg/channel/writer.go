package channel

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// joinLimit is the frame size, in bytes, up to which header and payload are
// copied together: one small write is cheaper than a vectored one.
const joinLimit = 64 << 10

// Writer writes frames, each whole, from any number of goroutines.
type Writer struct {
	mu     sync.Mutex // guards everything below
	w      io.Writer
	joined []byte
	err    error
}

// NewWriter returns a writer of frames to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends one frame. It does not check it: that is the reader's part. After
// an error half a frame may have been sent, so every later call returns that
// error too.
func (w *Writer) Write(f Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	var head [HeaderSize]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(f.Payload)))
	head[4], head[5] = byte(f.Type), f.Flags
	binary.BigEndian.PutUint32(head[8:], f.ID)
	var err error
	if len(f.Payload) < joinLimit {
		w.joined = append(append(w.joined[:0], head[:]...), f.Payload...)
		_, err = w.w.Write(w.joined)
	} else {
		parts := net.Buffers{head[:], f.Payload}
		_, err = parts.WriteTo(w.w)
	}
	if err != nil {
		w.err = fmt.Errorf("writing frame: %w", err)
	}
	return w.err
}
