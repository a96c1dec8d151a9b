package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors one read takes in.
const maxFiles = 16

// Receiver reads frames and the descriptors that come with them; it is a client's half.
// It is for one goroutine.
type Receiver struct {
	conn  *net.UnixConn
	files []*os.File // came, and belong to a frame that is not complete yet
	oob   []byte
}

// NewReceiver returns a receiver of what the other side of conn sends.
func NewReceiver(conn *net.UnixConn) *Receiver {
	return &Receiver{conn: conn, oob: make([]byte, unix.CmsgSpace(maxFiles*4))}
}

// Receive returns the next frame's JSON and the descriptors that came with it, which
// the caller closes. io.EOF means that the other side closed between frames.
func (r *Receiver) Receive() (body []byte, files []*os.File, err error) {
	defer func() {
		files, r.files = r.files, nil
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	var header [frameHeader]byte
	if err := r.fill(header[:]); err != nil {
		return nil, nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxFrame {
		return nil, nil, fmt.Errorf("%w: a frame of %d bytes; the largest allowed has %d", ErrProtocol, size, MaxFrame)
	}
	body = make([]byte, size)
	if err := r.fill(body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, nil, err
	}
	return body, nil, nil
}

// fill reads until into is full. A read never takes bytes of the next frame: so what
// descriptors come belong to this one.
func (r *Receiver) fill(into []byte) error {
	for filled := 0; filled < len(into); {
		n, oobn, flags, _, err := r.conn.ReadMsgUnix(into[filled:], r.oob)
		if oobn > 0 {
			files, bad := filesOf(r.oob[:oobn])
			r.files = append(r.files, files...)
			err = errors.Join(err, bad)
		}
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = fmt.Errorf("%w: more than %d descriptors at once", ErrProtocol, maxFiles)
		}
		if n == 0 && (err == nil || errors.Is(err, io.EOF)) {
			err = io.EOF
			if filled > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return err
		}
		filled += n
	}
	return nil
}

// filesOf takes the descriptors out of a control message. Go received them close-on-exec.
func filesOf(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading descriptors: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials or the like: nobody asked for them
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
