package channel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// memfdLeast is what a file in memory must have, in bytes, and from which on one is used.
const memfdLeast = 256 << 10

// flyingLimit is how much, in bytes, may be on its way to a guest in files.
const flyingLimit = 64 << 20

// seals keep a file in memory from being written, shrunk, grown and unsealed.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// socket receives bytes, and at most one descriptor that no frame has claimed yet.
type socket struct {
	conn    *net.UnixConn
	pending *os.File
	room    [20]byte // unix.CmsgLen(4): one descriptor
}

// Read is io.Reader. A second descriptor, or one that did not fit, is a [ProtocolError].
func (s *socket) Read(p []byte) (int, error) {
	n, room, flags, _, err := s.conn.ReadMsgUnix(p, s.room[:])
	n = max(n, 0) // it is -1 with an error
	if room == 0 && flags&unix.MSG_CTRUNC == 0 {
		return n, err
	}
	file, parseErr := receivedFile(s.room[:room])
	switch {
	case parseErr != nil:
		return n, parseErr
	case file == nil:
		return n, broken("a descriptor did not arrive: this process can open no more files, or several came at once")
	case s.pending != nil || flags&unix.MSG_CTRUNC != 0:
		_ = file.Close()
		return n, broken("more descriptors than frames that go with one")
	}
	s.pending = file
	return n, err
}

func receivedFile(room []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(room)
	if err != nil {
		return nil, fmt.Errorf("reading control message: %w", err)
	}
	for _, message := range messages {
		if fds, err := unix.ParseUnixRights(&message); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "memfd"), nil
		}
	}
	return nil, nil
}

// take is the pending descriptor; the caller closes it.
func (s *socket) take() *os.File {
	file := s.pending
	s.pending = nil
	return file
}

// NewSocketReader is [NewReader] for a guest's socket, on which large values come as
// sealed files in memory. It buffers. Close it: a descriptor may have come that no
// frame has claimed.
func NewSocketReader(conn *net.UnixConn, message int64) *Reader {
	s := &socket{conn: conn}
	buffered := bufio.NewReaderSize(s, firstChunk)
	return &Reader{r: buffered, from: FromGuest, limit: limit{now: message, former: message}, socket: s, buffered: buffered}
}

// Close closes what has come and was not claimed; the connection is the caller's.
func (r *Reader) Close() error {
	if r.socket == nil || r.socket.pending == nil {
		return nil
	}
	return r.socket.take().Close()
}

// stray says that a descriptor has come with bytes of which no frame has claimed it.
func (r *Reader) stray() bool {
	return r.socket != nil && r.socket.pending != nil && r.buffered.Buffered() == 0
}

// readBeside puts the value together whose larger part is in a file. It is read, not
// mapped: a garbage collector cannot know when a mapping is of no more use.
func (r *Reader) readBeside(payload []byte) (_ []byte, err error) {
	file := r.socket.take()
	if file == nil {
		return nil, broken("a value in a file in memory, without the file's descriptor")
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if len(payload) <= 8 {
		return nil, broken("a value in a file in memory, in a frame of %d bytes", len(payload))
	}
	rest, begin := binary.BigEndian.Uint64(payload), payload[8:]
	if rest < memfdLeast || rest > math.MaxInt64/2 || !r.fits(int64(rest)+int64(len(begin))) {
		return nil, broken("a file in memory of %d bytes; %d to %d are allowed", rest, memfdLeast, r.limit.former+ValueSlack)
	}
	if split := splitAt(begin); split != len(begin) {
		return nil, broken("a value that is not split behind its first byte or, with buffers, behind its JSON")
	}
	if err := checkSealed(file, int64(rest)); err != nil {
		return nil, err
	}
	whole := make([]byte, len(begin)+int(rest))
	copy(whole, begin)
	if _, err := file.ReadAt(whole[len(begin):], 0); err != nil {
		return nil, fmt.Errorf("reading a file in memory: %w", err)
	}
	return whole, nil
}

// checkSealed refuses a file that can still change, that is not what was announced, or
// that has holes: reading one would allocate memory of ours.
func checkSealed(file *os.File, size int64) error {
	fd := file.Fd()
	found, err := unix.FcntlInt(fd, unix.F_GET_SEALS, 0)
	if err != nil {
		return broken("a descriptor that is no file in memory")
	}
	if found&seals != seals {
		return broken("a file in memory with the seals %#x, without all of %#x: it could still change", found, seals)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(fd), &stat); err != nil {
		return fmt.Errorf("looking at a file in memory: %w", err)
	}
	if stat.Size != size {
		return broken("a file in memory of %d bytes, announced with %d", stat.Size, size)
	}
	if stat.Blocks*512 < size {
		return broken("a file in memory of %d bytes with holes: only %d are there", size, stat.Blocks*512)
	}
	return nil
}

// splitAt is where a payload is divided between frame and file: behind its first byte,
// or behind the JSON that goes before buffers.
func splitAt(payload []byte) int {
	if payload[0] != 'B' {
		return 1
	}
	if len(payload) < 5 {
		return len(payload)
	}
	return 5 + int(min(binary.BigEndian.Uint32(payload[1:]), 1<<31-8))
}

// writeBeside sends the frame with all but the beginning of its payload in a sealed file.
func writeBeside(conn *net.UnixConn, f Frame, split int) error {
	fd, err := sealed(f.Payload[split:])
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	begin := binary.BigEndian.AppendUint64(nil, uint64(len(f.Payload)-split))
	f.Payload, f.Flags = append(begin, f.Payload[:split]...), f.Flags|FlagMemfd
	frame := appendFrame(nil, f)
	n, _, err := conn.WriteMsgUnix(frame, unix.UnixRights(fd), nil)
	if err == nil && n < len(frame) {
		_, err = conn.Write(frame[n:])
	}
	return err
}

// sealed makes a file in memory with this content that nobody can change any more.
func sealed(content []byte) (fd int, err error) {
	const noExec = 0x8 // since Linux 6.3
	fd, err = unix.MemfdCreate("psi", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|noExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("psi", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for len(content) > 0 && err == nil {
		var n int
		n, err = unix.Write(fd, content)
		content = content[max(n, 0):]
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("writing a file in memory: %w", err)
	}
	return fd, nil
}

// unread says whether something of a socket's output has not been read.
func unread(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	left := 1
	if controlErr := raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); controlErr != nil || err != nil {
		return true
	}
	return left > 0
}
