package channel

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
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

	conn   *net.UnixConn // a guest's socket: nil if descriptors do not get there
	memfds atomic.Bool   // the guest takes them
	flying int           // bytes of the files that went since the guest had last read everything
}

// NewWriter returns a writer of frames to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// NewSocketWriter is [NewWriter] for a guest's socket. It says in every frame that
// its process takes large values as files in memory: see [NewSocketReader].
func NewSocketWriter(conn *net.UnixConn) *Writer { return &Writer{w: conn, conn: conn} }

// PassMemfds has large values sent as files in memory from now on, if this is a
// socket: the guest has said that it takes them.
func (w *Writer) PassMemfds() { w.memfds.Store(w.conn != nil) }

// Write sends one frame. It does not check it: that is the reader's part. After
// an error half a frame may have been sent, so every later call returns that
// error too.
func (w *Writer) Write(f Frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if w.conn != nil {
		f.Flags |= FlagTakesMemfds
	}
	var err error
	switch {
	case len(f.Payload) < joinLimit:
		w.joined = appendFrame(w.joined[:0], f)
		_, err = w.w.Write(w.joined)
	case (f.Type == Call || f.Type == HostPost) && w.memfds.Load() && w.takesFile(len(f.Payload)-splitAt(f.Payload)):
		err = writeBeside(w.conn, f, splitAt(f.Payload))
	default:
		parts := net.Buffers{appendHeader(nil, f), f.Payload}
		_, err = parts.WriteTo(w.w)
	}
	if err != nil {
		w.err = fmt.Errorf("writing frame: %w", err)
	}
	return w.err
}

// takesFile says whether a value may go beside the channel in a file of this size: a
// frame with one is short, and would not be stopped by the kernel when the guest does
// not read, while the file is our memory.
func (w *Writer) takesFile(size int) bool {
	if size < memfdLeast {
		return false
	}
	if w.flying > 0 && w.flying+size > flyingLimit {
		if unread(w.conn) {
			return false
		}
		w.flying = 0
	}
	w.flying += size
	return true
}

func appendHeader(to []byte, f Frame) []byte {
	to = binary.BigEndian.AppendUint32(to, uint32(len(f.Payload)))
	to = append(to, byte(f.Type), f.Flags, 0, 0)
	return binary.BigEndian.AppendUint32(to, f.ID)
}

func appendFrame(to []byte, f Frame) []byte { return append(appendHeader(to, f), f.Payload...) }
