package control

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFrame is the largest JSON object on the control socket, in bytes. The largest
// honest message is a policy with a few thousand rules.
const MaxFrame = 1 << 20

const frameHeader = 4

// ReadFrame reads one frame's JSON. io.EOF means that the peer closed between frames.
func ReadFrame(r io.Reader) ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxFrame {
		return nil, fmt.Errorf("%w: a frame of %d bytes; the largest allowed has %d", ErrProtocol, size, MaxFrame)
	}
	// The length is a claim: memory is taken as the bytes arrive.
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, err
	}
	if uint32(len(body)) != size {
		return nil, io.ErrUnexpectedEOF
	}
	return body, nil
}

// AppendFrame appends a frame to others that are to be sent at once. Its body is at most
// MaxFrame.
func AppendFrame(frames, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(frames, uint32(len(body))), body...)
}

// WriteFrame sends one frame; file, when not nil, travels with its first byte.
func WriteFrame(conn *net.UnixConn, body []byte, file *os.File) error {
	if len(body) > MaxFrame {
		return fmt.Errorf("writing frame: %d bytes; the largest allowed has %d", len(body), MaxFrame)
	}
	frame := AppendFrame(nil, body)
	if file == nil {
		_, err := conn.Write(frame)
		return err
	}
	sent, _, err := conn.WriteMsgUnix(frame, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && sent < len(frame) {
		_, err = conn.Write(frame[sent:])
	}
	return err
}
