package agenttest

import (
	"bytes"
	"net"
	"testing"

	"github.com/psi-runtime/psi/pkg/channel"
)

// direct has the test's end of the channel take and send large values beside it.
func (g *guest) direct() {
	g.t.Helper()
	found, err := net.FileConn(g.conn)
	if err != nil {
		g.t.Fatal(err)
	}
	conn := found.(*net.UnixConn)
	reader := channel.NewSocketReader(conn, 64<<20)
	writer := channel.NewSocketWriter(conn)
	if g.ready.Memfd {
		writer.PassMemfds()
	}
	g.r, g.w = reader, writer
	g.t.Cleanup(func() { reader.Close(); conn.Close() })
}

// next is the payload of the next frame of this type.
func (g *guest) next(typ channel.Type) []byte {
	g.t.Helper()
	for {
		f, err := g.read()
		if err != nil {
			g.t.Fatalf("waiting for a frame of type %d: %v", typ, err)
		}
		if f.Type == typ {
			return f.Payload
		}
		if f.Type == channel.Error {
			g.t.Fatalf("waiting for a frame of type %d: %s", typ, f.Payload)
		}
	}
}

// Large values travel in files, both ways, and nothing of them is left behind.
func TestLargeValues(t *testing.T) {
	g := start(t, nil)
	if !g.ready.Memfd {
		t.Fatal("the agent does not take files in memory on a socket")
	}
	g.direct()
	g.exec(`
import os
def files(): return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
post(len(files()))`)
	before := g.next(channel.GuestPost)
	g.next(channel.Done)
	for _, value := range []any{bytes.Repeat([]byte("bytes "), 100_000), string(bytes.Repeat([]byte("text "), 100_000)),
		[]any{bytes.Repeat([]byte("inside "), 100_000), "and more", bytes.Repeat([]byte("x"), 300_000)}} {
		g.call("len", value)
		g.next(channel.Result)
		g.send(channel.HostPost, 0, g.encode(value))
		g.exec("post(recv())")
		back := g.next(channel.GuestPost)
		if want := g.encode(value); !bytes.Equal(back, want) {
			t.Errorf("a value of %d bytes came back as %d", len(want), len(back))
		}
	}
	g.exec("post(len(files()))")
	if after := g.next(channel.GuestPost); !bytes.Equal(after, before) {
		t.Errorf("the guest has %s open files, and had %s", after, before)
	}
}

// A guest whose import list hides mmap reads files that it would map, and does not load it.
func TestLargeValuesWithoutMmap(t *testing.T) {
	g := start(t, nil)
	g.direct()
	g.exec("import sys; sys.modules['mmap'] = None")
	g.next(channel.Done)
	value := bytes.Repeat([]byte("bytes "), 100_000)
	g.send(channel.HostPost, 0, g.encode(value))
	g.exec("x = recv(); post([x, sys.modules['mmap']])")
	if got := g.next(channel.GuestPost); !bytes.HasSuffix(got, value) {
		t.Errorf("got %d bytes", len(got))
	}
}

// A host that has not said that it takes files gets none.
func TestLargeValuesInline(t *testing.T) {
	g := start(t, nil)
	g.exec("post(b'x' * (1 << 20))")
	if got := g.next(channel.GuestPost); len(got) != 1<<20+1 {
		t.Errorf("got %d bytes", len(got))
	}
}

// A guest without a free descriptor cannot take a file: it gets an error, and lives on.
func TestLargeValuesWithoutADescriptor(t *testing.T) {
	g := start(t, nil)
	g.direct()
	g.exec(`
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
held = []
try:
    while True: held.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
post("none is free")
try: recv()
except OSError as error: post(error.errno)
while held: os.close(held.pop())
post(recv())`)
	g.next(channel.GuestPost) // what comes while guest code runs is taken at once
	g.send(channel.HostPost, 0, g.encode(bytes.Repeat([]byte("x"), 1<<20)))
	if got := g.next(channel.GuestPost); string(got) != "J24" {
		t.Errorf("got %.100q", got)
	}
	g.send(channel.HostPost, 0, g.encode(bytes.Repeat([]byte("x"), 1<<20)))
	if got := g.next(channel.GuestPost); len(got) != 1<<20+1 {
		t.Errorf("got %d bytes", len(got))
	}
}

// A burst of posts arrives whole, in order and among other frames, however the guest goes on.
func TestBurst(t *testing.T) {
	for name, end := range map[string]string{
		"done": "", "print": "print('after')", "sleep": "import time; time.sleep(60)", "compute": "while True: pass",
		"recv": "recv()", "exit": "import os; os._exit(0)", "large": "post('x' * 1000000)", "fork": "import os\nif os.fork() == 0: os._exit(0)\nos.wait()",
	} {
		g := start(t, nil)
		g.exec("for i in range(1000): post(i)\n" + end)
		for i := range 1000 {
			value, err := channel.Decode(g.next(channel.GuestPost), channel.DecodeOptions{})
			if err != nil || value != int64(i) {
				t.Fatalf("%s: post %d is %v (%v)", name, i, value, err)
			}
		}
	}
}
