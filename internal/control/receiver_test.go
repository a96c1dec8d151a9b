package control

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "end")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDescriptorsComeWithTheirFrame(t *testing.T) {
	ours, theirs := pair(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	for _, frame := range []struct {
		body string
		file *os.File
	}{{`{"id":1}`, nil}, {`{"id":2}`, write}, {strings.Repeat("x", 200_000), nil}, {`{"id":3}`, nil}} {
		written := make(chan error)
		go func() { written <- WriteFrame(theirs, []byte(frame.body), frame.file) }()
		r := NewReceiver(ours)
		body, files, err := r.Receive()
		if err != nil || string(body) != frame.body || (len(files) == 1) != (frame.file != nil) {
			t.Fatalf("%.20s came as %.20s with %d descriptors, %v", frame.body, body, len(files), err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			file.WriteString("through it")
			file.Close()
			buf := make([]byte, 20)
			if n, _ := read.Read(buf); string(buf[:n]) != "through it" {
				t.Errorf("the descriptor is another one: %q", buf[:n])
			}
		}
	}
	write.Close()
}

// Frames in one write, read by one receiver: each keeps its own descriptor.
func TestFramesBackToBack(t *testing.T) {
	ours, theirs := pair(t)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i := range 10 {
		var sent *os.File
		if i%2 == 1 {
			sent = file
		}
		if err := WriteFrame(theirs, []byte{byte('0' + i)}, sent); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	r := NewReceiver(ours)
	for i := range 10 {
		body, files, err := r.Receive()
		if err != nil || string(body) != string(byte('0'+i)) || len(files) != i%2 {
			t.Fatalf("frame %d: %s with %d descriptors, %v", i, body, len(files), err)
		}
		closeAll(files)
	}
	if _, _, err := r.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestBrokenFramesKeepNoDescriptor(t *testing.T) {
	before := openFiles(t)
	for name, c := range map[string]struct {
		wire  []byte
		files int
		want  error
	}{
		"too large":            {binary.BigEndian.AppendUint32(nil, MaxFrame+1), 1, ErrProtocol},
		"half a header":        {[]byte{0, 0}, 1, io.ErrUnexpectedEOF},
		"half a body":          {append(binary.BigEndian.AppendUint32(nil, 10), "abc"...), 1, io.ErrUnexpectedEOF},
		"nothing of a body":    {binary.BigEndian.AppendUint32(nil, 10), 1, io.ErrUnexpectedEOF},
		"too many descriptors": {append(binary.BigEndian.AppendUint32(nil, 1), 'x'), maxFiles + 8, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			file, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var fds []int
			for range c.files {
				fds = append(fds, int(file.Fd()))
			}
			if _, _, err := theirs.WriteMsgUnix(c.wire, unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			if _, files, err := NewReceiver(ours).Receive(); !errors.Is(err, c.want) || files != nil {
				t.Errorf("%v, %d descriptors", err, len(files))
			}
		})
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
