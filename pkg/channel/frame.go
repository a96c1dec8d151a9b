package channel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Protocol is the version of the frames, as READY announces it.
const Protocol = 2

// HeaderSize is the number of bytes before each payload.
const HeaderSize = 12

// StreamLimit is the largest payload, in bytes, of a stream or JSON frame.
const StreamLimit = 64 << 10

// ValueSlack is what a value or source may have beyond the message limit of the
// policy, in bytes.
const ValueSlack = 64 << 10

// ConfigLimit is the largest payload of a CONFIG frame, in bytes: as a policy's document.
const ConfigLimit = 1 << 20

// Type tells what a frame is.
type Type uint8

// The types that a host sends.
const (
	Exec      Type = 1
	Call      Type = 2
	HostPost  Type = 3
	Interrupt Type = 4
	Cancel    Type = 5
	Config    Type = 6
)

// The types that a guest sends.
const (
	Ready     Type = 16
	Done      Type = 17
	Result    Type = 18
	Error     Type = 19
	GuestPost Type = 20
	Stdout    Type = 21
	Stderr    Type = 22
	Notice    Type = 23
)

// Flags of a frame.
const (
	FlagExec        = 1 // of Error: the request was an Exec
	FlagMemfd       = 2 // of a value: all but its beginning is in a file in memory, which comes as a descriptor
	FlagTakesMemfds = 4 // of what a host sends: it takes such values
)

// Frame is one message. Payload is its own memory.
type Frame struct {
	Type    Type
	Flags   uint8
	ID      uint32
	Payload []byte
}

// Sender is the side that a stream of frames comes from.
type Sender uint8

// The two sides of a channel.
const (
	FromHost Sender = iota
	FromGuest
)

// ErrProtocol is what every [ProtocolError] is.
var ErrProtocol = errors.New("protocol error")

// ProtocolError says which rule of the frames the other side has broken.
type ProtocolError struct {
	Rule string // "payload of 99 bytes in a frame of type 17: the limit is 0"
}

func (e *ProtocolError) Error() string { return "protocol error: " + e.Rule }

// Is makes errors.Is(err, ErrProtocol) true.
func (e *ProtocolError) Is(target error) bool { return target == ErrProtocol }

func broken(format string, args ...any) error {
	return &ProtocolError{Rule: fmt.Sprintf(format, args...)}
}

type header struct {
	size   uint32
	beside bool // descriptors come with the bytes
	Frame
}

// check applies every rule that a header alone can break.
func (h header) check(from Sender, message int64) error {
	host := h.Type >= Exec && h.Type <= Config
	guest := h.Type >= Ready && h.Type <= Notice
	if (from == FromHost && !host) || (from == FromGuest && !guest) {
		return broken("unknown frame type %d", h.Type)
	}
	if h.Flags&^h.flags(from) != 0 {
		return broken("flags %#x in a frame of type %d", h.Flags, h.Type)
	}
	if limit := sizeLimit(h.Type, message); int64(h.size) > limit {
		return broken("payload of %d bytes in a frame of type %d: the limit is %d", h.size, h.Type, limit)
	}
	switch h.Type {
	case Config, HostPost, Ready, GuestPost, Notice:
		if h.ID != 0 {
			return broken("request id %d in a frame of type %d, which belongs to no request", h.ID, h.Type)
		}
	case Stdout, Stderr:
	default:
		if h.ID == 0 {
			return broken("no request id in a frame of type %d", h.Type)
		}
	}
	return nil
}

// flags are those that the frame may have.
func (h header) flags(from Sender) uint8 {
	switch {
	case h.Type == Error:
		return FlagExec
	case from == FromHost:
		return FlagTakesMemfds
	case h.beside && (h.Type == Result || h.Type == GuestPost):
		return FlagMemfd
	}
	return 0
}

func sizeLimit(t Type, message int64) int64 {
	switch t {
	case Exec, Call, HostPost, Result, GuestPost:
		return message + ValueSlack
	case Ready, Error, Stdout, Stderr, Notice:
		return StreamLimit
	case Config:
		return ConfigLimit
	}
	return 0
}

// Reader reads the frames of one side. It is for one goroutine.
type Reader struct {
	r        io.Reader
	from     Sender
	limit    limit
	hear     func() // nil: there are no news
	position int64  // of the next byte of the stream
	head     [HeaderSize]byte
	socket   *socket       // nil: no descriptors come
	buffered *bufio.Reader // of the socket
}

// NewReader returns a reader of what from sends. message is the policy's limit
// of one value, in bytes. Give it a buffered r if frames are small.
func NewReader(r io.Reader, from Sender, message int64) *Reader {
	return &Reader{r: r, from: from, limit: limit{now: message, former: message}}
}

// Read returns the next frame. Errors: io.EOF at the end of the stream, an error
// that is io.ErrUnexpectedEOF if the stream ends inside a frame, a
// [ProtocolError], or what the underlying reader says. After any error the
// stream cannot be read on.
//
// Memory follows what arrives, not what a header claims.
func (r *Reader) Read() (Frame, error) {
	if r.stray() {
		return Frame{}, broken("a descriptor that belongs to no frame")
	}
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return Frame{}, io.EOF
		}
		return Frame{}, fmt.Errorf("reading frame header: %w", err)
	}
	h := header{size: binary.BigEndian.Uint32(r.head[:]), beside: r.socket != nil}
	h.Type, h.Flags = Type(r.head[4]), r.head[5]
	h.ID = binary.BigEndian.Uint32(r.head[8:])
	if r.head[6] != 0 || r.head[7] != 0 {
		return Frame{}, broken("reserved bytes of a frame are not zero")
	}
	start := r.position
	r.position += HeaderSize
	value := h.Type == Result || h.Type == GuestPost
	if value {
		r.fits(int64(h.size))
	}
	if err := h.check(r.from, r.limit.former); err != nil {
		return Frame{}, err
	}
	payload, err := readPayload(r.r, int(h.size))
	if err != nil {
		return Frame{}, fmt.Errorf("reading frame payload: %w", err)
	}
	r.position += int64(h.size)
	if h.Flags&FlagMemfd != 0 {
		h.Flags &^= FlagMemfd
		if payload, err = r.readBeside(payload); err != nil {
			return Frame{}, err
		}
	}
	if value {
		r.letIn(int64(len(payload)), start)
	}
	h.Payload = payload
	return h.Frame, nil
}

const firstChunk = 64 << 10

// readPayload reads size bytes, growing what it holds at most twofold beyond
// what has arrived.
func readPayload(r io.Reader, size int) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	payload := make([]byte, min(size, firstChunk))
	for read := 0; ; {
		n, err := io.ReadFull(r, payload[read:])
		read += n
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if read == size {
			return payload, nil
		}
		grown := make([]byte, min(size, 2*read))
		copy(grown, payload)
		payload = grown
	}
}
