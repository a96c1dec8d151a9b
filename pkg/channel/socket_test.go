package channel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func socketPair(t *testing.T) (host, guest *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "channel")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func descriptors(t *testing.T) int {
	t.Helper()
	found, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// What one end writes beside the channel, the other reads as one value.
func TestBeside(t *testing.T) {
	host, guest := socketPair(t)
	before := descriptors(t)
	for _, size := range []int{memfdLeast - 1, memfdLeast, memfdLeast + 1, 5 << 20} {
		sent := append([]byte{'Y'}, bytes.Repeat([]byte("content "), size/8+1)[:size]...)
		go func() {
			if err := writeBeside(guest, Frame{Type: GuestPost, Payload: sent}, 1); err != nil {
				t.Error(err)
			}
		}()
		r := NewSocketReader(host, 8<<20)
		f, err := r.Read()
		if size < memfdLeast {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%d bytes: %v", size, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(f.Payload, sent) || f.Flags != 0 {
			t.Errorf("%d bytes: got %d, flags %d, %v", size, len(f.Payload), f.Flags, err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are left", after-before)
	}
}

// A writer sends values beside the channel only to who has said that it takes them.
func TestPassMemfds(t *testing.T) {
	host, guest := socketPair(t)
	payload := bytes.Repeat([]byte{'Y'}, 1<<20)
	w := NewSocketWriter(host)
	for _, pass := range []bool{false, true} {
		if pass {
			w.PassMemfds()
		}
		go w.Write(Frame{Type: HostPost, Payload: payload})
		head := make([]byte, HeaderSize)
		if _, err := io.ReadFull(guest, head); err != nil {
			t.Fatal(err)
		}
		size := int(head[0])<<24 | int(head[1])<<16 | int(head[2])<<8 | int(head[3])
		want, flags := len(payload), byte(FlagTakesMemfds)
		if pass {
			want, flags = 9, flags|FlagMemfd
		}
		if size != want || head[5] != flags {
			t.Errorf("pass %v: a frame of %d bytes with flags %d", pass, size, head[5])
		}
		if _, err := io.CopyN(io.Discard, guest, int64(size)); err != nil {
			t.Fatal(err)
		}
	}
}

// Where no descriptors come, a frame cannot ask for one.
func TestBesideNeedsASocket(t *testing.T) {
	_, err := NewReader(bytes.NewReader(frameBytes(9, byte(GuestPost), FlagMemfd, 0, 0, "\x00\x00\x00\x00\x00\x04\x00\x00S")), FromGuest, 1<<20).Read()
	if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "flags 0x2") {
		t.Error(err)
	}
}

// A descriptor that nobody claims is closed with the reader.
func TestUnclaimedDescriptor(t *testing.T) {
	host, guest := socketPair(t)
	before := descriptors(t)
	r := NewSocketReader(host, 1<<20)
	half := frameBytes(5, byte(GuestPost), 0, 0, 0, "Sx")
	if _, _, err := guest.WriteMsgUnix(half, unix.UnixRights(0), nil); err != nil {
		t.Fatal(err)
	}
	guest.CloseWrite()
	if _, err := r.Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if descriptors(t) != before+1 {
		t.Error("the descriptor did not arrive")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are left", after-before)
	}
}
