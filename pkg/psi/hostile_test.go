package psi

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/channel"
)

// findChannel finds the channel inside a guest, for code that attacks it: the one socket
// among its descriptors.
const findChannel = `
import os, stat, struct, time, base64
channel = next(fd for fd in range(3, 1024) if os.path.exists(f"/proc/self/fd/{fd}")
               and stat.S_ISSOCK(os.stat(fd).st_mode))
def frame(kind, payload=b"", id=0, flags=0, zero=0, size=None):
    return struct.pack("!IBBHI", len(payload) if size is None else size, kind, flags, zero, id) + payload
def write(data):
    os.set_blocking(channel, True)
    while data:
        data = data[os.write(channel, data):]
`

// beside is for attacks by way of files in memory.
const beside = `
import fcntl, socket
LEAST = 256 << 10
file, hole = os.memfd_create("x", 3), os.memfd_create("y", 3)
os.write(file, b"x" * LEAST)
os.ftruncate(hole, 1 << 22)
def seal(fd, seals=15): fcntl.fcntl(fd, 1033, seals)
def beside(size, begin=b"S"): return struct.pack("!Q", size) + begin
def write_with(data, *fds):
    with socket.socket(fileno=os.dup(channel)) as s:
        s.setblocking(True)
        socket.send_fds(s, [data], fds or [file])
`

// Each attack ends its guest, with the rule that it broke, and no other guest.
func TestGuestsThatBreakTheRules(t *testing.T) {
	c := open(t)
	bystander := spawn(t, c, "")
	events := c.Events(t.Context())
	for attack, says := range map[string]string{
		"write(b'not a frame at all' * 100)":                                                   "reserved",
		"write(frame(20, size=0xffffffff))":                                                    "4294967295 bytes",
		"write(frame(21, size=70000))":                                                         "70000 bytes",
		"write(frame(20, b'Sx', zero=1))":                                                      "reserved",
		"write(frame(20, b'Sx', flags=4))":                                                     "flags 0x4",
		"write(frame(1, b'import os'))":                                                        "type 1",
		beside + "write_with(frame(20, beside(LEAST), flags=2))":                               "without all of 0xf",
		beside + "seal(file, 8)\nwrite_with(frame(20, beside(LEAST), flags=2))":                "without all of 0xf",
		beside + "seal(file, 16)\nwrite_with(frame(20, beside(LEAST), flags=2))":               "without all of 0xf",
		beside + "seal(file)\nwrite_with(frame(20, beside(2 * LEAST), flags=2))":               "announced with 524288",
		beside + "seal(file)\nwrite_with(frame(20, beside(100), flags=2))":                     "of 100 bytes; 262144 to",
		beside + "seal(hole)\nwrite_with(frame(20, beside(1 << 22), flags=2), hole)":           "with holes",
		beside + "write_with(frame(20, beside(LEAST), flags=2), os.open('/tmp', os.O_RDONLY))": "no file in memory",
		beside + "write_with(frame(20, beside(LEAST), flags=2), os.pipe()[0])":                 "no file in memory",
		beside + "seal(file)\nwrite(frame(20, beside(LEAST), flags=2))":                        "without the file's descriptor",
		beside + "seal(file)\nwrite_with(frame(20, b'Sx'))":                                    "belongs to no frame",
		beside + "seal(file)\nwrite_with(frame(20, b'Sx'), *[file] * 100)":                     "more descriptors|did not arrive",
		beside + "seal(file)\nwrite_with(frame(18, beside(LEAST), flags=2, id=1))":             "another kind",
		beside + "seal(file)\nwrite_with(frame(21, beside(LEAST), flags=2))":                   "flags 0x2",
		beside + "seal(file)\nwrite_with(frame(20, beside(LEAST, b'Sxx'), flags=2))":           "not split",
		"write(frame(18, b'Sx', id=77))":                                                       "request 77",
		"write(frame(18, b'Sx', id=1))":                                                        "another kind",
		"write(frame(17, id=1))":                                                               "request 1, which is not open", // the agent answers as well
		"write(frame(19, b'{', id=1, flags=1))":                                                "report of an exception|request 1, which is not open",
		"write(frame(19, b'[' * 60000, id=1, flags=1))":                                        "report of an exception|request 1, which is not open",
		`write(frame(19, b'{"type":1}', id=1, flags=1))`:                                       "report of an exception|request 1, which is not open",
		"write(frame(23, b'[]'))":                                                              "JSON object",
		"write(frame(23, b'[' * 60000))":                                                       "JSON object",
		"write(frame(23, b'null'))":                                                            "JSON object",
		"write(frame(16, b'{\"protocol\":99}'))":                                               "version 99",
		`write(frame(20, b'\x80\x04r\xff\xff\xff\xff\x00.'))`:                                  "first byte",
		"write(frame(20, b'J' + b'[' * (4 << 20)))":                                            "not allowed",
	} {
		sb := spawn(t, c, "")
		run(t, sb, findChannel+attack)
		end := endOf(t, sb)
		matched := false
		for _, one := range strings.Split(says, "|") {
			matched = matched || strings.Contains(end.Text, one)
		}
		if end.Cause != "broken" || !matched {
			t.Errorf("%s: cause %q: %v", attack, end.Cause, end)
		}
		for told := false; !told; {
			select {
			case e := <-events:
				told = e.Sandbox == sb && e.Type == BrokerError
			case <-soon(t).Done():
				t.Fatalf("%s: no BROKER_ERROR", attack)
			}
		}
		if _, err := sb.Call(soon(t), "abs", 1); err == nil {
			t.Errorf("%s: the guest goes on", attack)
		}
		if err := sb.Close(soon(t), Grace); err != nil {
			t.Error(err)
		}
	}
	works(t, bystander)
}

func TestHalfAFrame(t *testing.T) {
	c := open(t)
	sb := spawn(t, c, "")
	run(t, sb, findChannel+"write(frame(20, b'Swhole') + frame(20, b'S', size=1000000))\ntime.sleep(1000)")
	if v := recv(t, sb); v != "whole" {
		t.Errorf("got %v", v)
	}
	if _, err := sb.Recv(within(t, 100*time.Millisecond)); !isTimeout(err) {
		t.Errorf("half a frame, then silence: %v", err)
	}
	sb = spawn(t, c, "")
	run(t, sb, findChannel+"write(frame(20, b'Swhole') + frame(20, b'S', size=1000))\nos._exit(5)")
	if v := recv(t, sb); v != "whole" {
		t.Errorf("got %v", v)
	}
	if end := endOf(t, sb); end.Cause != "exit" || !strings.Contains(end.Text, "exit code 5") {
		t.Errorf("half a frame, then death: %v", end)
	}
	sb = spawn(t, c, "")
	run(t, sb, findChannel+"write(frame(20, b'Sgood') + b'x' * 50)")
	if v := recv(t, sb); v != "good" {
		t.Errorf("what came before a broken frame: %v", v)
	}
	if end := endOf(t, sb); end.Cause != "broken" {
		t.Errorf("after it: %v", end)
	}
	sb = spawn(t, c, "")
	run(t, sb, findChannel+"import socket\nsocket.socket(fileno=os.dup(channel)).shutdown(socket.SHUT_WR)\ntime.sleep(1000)")
	if end := endOf(t, sb); end.Cause != "broken" || !strings.Contains(end.Text, "went on running") {
		t.Errorf("a closed channel: %v", end)
	}
}

// The corpus of values that packages channel and python test: what is to be accepted
// arrives, what is to be refused ends the guest that sent it.
func TestValuesOfTheCorpus(t *testing.T) {
	c := open(t)
	files, err := filepath.Glob("../channel/testdata/corpus/*")
	if err != nil || len(files) < 300 {
		t.Fatalf("a corpus of %d files: %v", len(files), err)
	}
	good := spawn(t, c, `{"mem": "512MiB"}`)
	run(t, good, findChannel)
	refused := 0
	for _, file := range files {
		payload, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code := fmt.Sprintf("write(frame(20, base64.b64decode(%q)))", base64.StdEncoding.EncodeToString(payload))
		name := filepath.Base(file)
		if strings.HasPrefix(name, "accept-") {
			run(t, good, code)
			if _, err := good.Recv(soon(t)); err != nil && !strings.Contains(err.Error(), "Accept opts in") {
				t.Fatalf("%s: %v", name, err)
			}
			continue
		}
		if refused++; refused%8 != 1 && os.Getenv("PSI_TEST_ALL") == "" {
			continue // each takes a guest; pkg/channel has them all
		}
		sb := spawn(t, c, "")
		run(t, sb, findChannel+code)
		if _, err := sb.Recv(soon(t)); name == "reject-class-not-opted-in" {
			var refused *SandboxError
			if !asSandbox(err, &refused) || refused.Cause != "" || !strings.Contains(err.Error(), "Accept") {
				t.Errorf("%s: %v", name, err)
			}
		} else if end := endOf(t, sb); end.Cause != "broken" {
			t.Errorf("%s: %v", name, end)
		}
		sb.Close(soon(t), Grace)
	}
	sb := spawn(t, c, "")
	sb.Accept("Point")
	run(t, sb, "import dataclasses\n@dataclasses.dataclass\nclass Point:\n  x: int\n  y: int\npost(Point(3, 4))")
	if v := recv(t, sb); !reflect.DeepEqual(v, channel.Instance{Class: "Point", Args: []any{int64(3), int64(4)}}) {
		t.Errorf("a class that was opted in to: %#v", v)
	}
	works(t, good)
}

// What a guest sends costs the guest, not the client.
func TestFloods(t *testing.T) {
	c := open(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	sb := spawn(t, c, `{"mem": "256MiB", "output": "1GiB"}`)
	run(t, sb, findChannel+"while True: write(frame(20, b'Y' + b'x' * 65000))")
	talker := spawn(t, c, `{"output": "1GiB"}`)
	run(t, talker, findChannel+"while True: write(frame(21, b'x' * 65000))")
	time.Sleep(scaled(time.Second))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the client has grown by %d MiB", grown>>20)
	}
	if len(talker.Stdout()) > outputTail {
		t.Errorf("%d bytes of output are kept", len(talker.Stdout()))
	}
	for _, each := range []*Sandbox{sb, talker} {
		if err := each.Close(soon(t), 0); err != nil {
			t.Error(err)
		}
	}
}

func socketPair(t *testing.T) (host, guest *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "channel")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// FuzzSession: whatever comes out of a guest, the session ends or goes on, and nothing hangs.
func FuzzSession(f *testing.F) {
	add := func(frames ...channel.Frame) {
		var wire strings.Builder
		w := channel.NewWriter(&wire)
		for _, frame := range frames {
			w.Write(frame)
		}
		f.Add([]byte(wire.String()))
	}
	add(channel.Frame{Type: channel.Ready, Payload: []byte(`{"protocol":2}`)}, channel.Frame{Type: channel.Done, ID: 1})
	add(channel.Frame{Type: channel.Error, ID: 1, Flags: 1, Payload: []byte("{}")}, channel.Frame{Type: channel.Result, ID: 2, Payload: []byte("J1")})
	add(channel.Frame{Type: channel.Stdout, ID: 1, Payload: []byte("x")}, channel.Frame{Type: channel.GuestPost, Payload: []byte("Sx")})
	f.Add([]byte("not a frame"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		host, guest := socketPair(t)
		s := newSession(host, 1<<10, true, nil, nil, func(string) { host.Close() })
		go func() {
			buf := make([]byte, 1<<10)
			for {
				if _, err := guest.Read(buf); err != nil {
					return
				}
			}
		}()
		c, err := s.request(t.Context(), channel.Exec, []byte("x"), true)
		if err != nil {
			t.Fatal(err)
		}
		c.abandon() // else its output waits for somebody to listen
		if _, err := s.request(t.Context(), channel.Call, []byte("J[]"), false); err != nil {
			t.Fatal(err)
		}
		go func() {
			guest.Write(wire)
			guest.Close()
		}()
		for {
			if _, err := s.receive(t.Context()); err != nil {
				break
			}
		}
		s.close()
		guest.Close()
		if s.held > inboxBytes+1<<20 {
			t.Errorf("%d bytes are held", s.held)
		}
	})
}
