package supervisor

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

func itoa(n int) string { return strconv.Itoa(n) }

func frame(body string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
}

const helloFrame = "\x00\x00\x00\x21" + `{"id":1,"op":"hello","version":2}`

// rawDial connects without speaking.
func rawDial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(scaled(20 * time.Second)))
	return conn
}

func TestHostileFrames(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	witness := dialAs(t, socket, 0, gid)
	witness.hello(t)
	for _, test := range []struct {
		name, send string
		want       string // in what comes back
		ends       bool   // the connection ends by itself
	}{
		{"huge length", "\xff\xff\xff\xff", "largest allowed", true},
		{"a byte too long", "\x00\x10\x00\x01", "largest allowed", true},
		{"empty frame", "\x00\x00\x00\x00", "not a JSON object", true},
		{"not JSON", frame("hello"), "not a JSON object", true},
		{"array", frame(`[1]`), "not a JSON object", true},
		{"not UTF-8", frame("{\"id\":1,\"op\":\"\xff\"}"), "not UTF-8", true},
		{"two objects", frame(`{"id":1,"op":"hello","version":2}{}`), "after top-level value", true},
		{"deep", frame(`{"id":1,"op":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}"), "not a JSON object", true},
		{"no id", frame(`{"op":"hello","version":2}`), `no key \"id\"`, true},
		{"no op", frame(`{"id":1}`), `no key \"op\"`, true},
		{"key twice", frame(`{"id":1,"op":"list","op":"hello","version":2}`), "given twice", true},
		{"key in another case", frame(`{"ID":1,"op":"hello","version":2}`), `no key \"id\"`, true},
		{"not hello", frame(`{"id":1,"op":"list"}`), "must be hello", true},
		{"another version", frame(`{"id":1,"op":"hello","version":1}`), "speaks version 2", true},
		{"no version", frame(`{"id":1,"op":"hello"}`), "speaks version 2", true},
		{"negative id", frame(`{"id":-1,"op":"hello","version":2}`), `key \"id\"`, true},
		{"hello twice", helloFrame + frame(`{"id":2,"op":"hello","version":2}`), "said before", false},
		{"unknown op", helloFrame + frame(`{"id":2,"op":"exec"}`), `unknown op \"exec\"`, false},
		{"unknown key", helloFrame + frame(`{"id":2,"op":"list","all":true}`), `takes no key \"all\"`, false},
		{"wrong type", helloFrame + frame(`{"id":2,"op":"close","guest":7}`), `key \"guest\"`, false},
		{"bad timeout", helloFrame + frame(`{"id":2,"op":"close","guest":"a","timeout":-1}`), "between 0 and 3600", false},
		{"no name", helloFrame + frame(`{"id":2,"op":"spawn"}`), "1 to 64", false},
		{"name is a path", helloFrame + frame(`{"id":2,"op":"spawn","name":"../x"}`), "letters, digits", false},
		{"two policies", helloFrame + frame(`{"id":2,"op":"spawn","name":"a","policy":{},"policy_name":"defaults"}`), "give one of", false},
		{"policy is a path", helloFrame + frame(`{"id":2,"op":"spawn","name":"a","policy_name":"/etc/shadow"}`), `"kind":"policy"`, false},
		{"bad policy", helloFrame + frame(`{"id":2,"op":"spawn","name":"a","policy":{"memory":1}}`), "mem", false},
		{"bad policy text", helloFrame + frame(`{"id":2,"op":"spawn","name":"a","policy_text":"mem: [","policy_source":"x.yml"}`), "x.yml:", false},
		{"half a header", "\x00\x00", "", false},
		{"half a frame", "\x00\x00\x00\x10{", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn := rawDial(t, socket)
			if _, err := conn.Write([]byte(test.send)); err != nil {
				t.Fatal(err)
			}
			var got []byte
			chunk := make([]byte, 4096)
			for err := error(nil); err == nil; {
				if !test.ends && strings.Contains(string(got), test.want) {
					_ = conn.CloseWrite()
				}
				var n int
				n, err = conn.Read(chunk)
				got = append(got, chunk[:n]...)
				if err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("the connection did not end: %v", err)
				}
			}
			if !strings.Contains(string(got), test.want) {
				t.Errorf("got %q, want …%s…", got, test.want)
			}
		})
	}
	witness.must(t, map[string]any{"op": "list"})
}

// Requests after a refused one are still answered.
func TestRefusedRequestIsNotTheEnd(t *testing.T) {
	_, c := embedded(t)
	c.refused(t, control.KindProtocol, "unknown op", map[string]any{"op": "explode"})
	c.refused(t, control.KindProtocol, "takes no key", map[string]any{"op": "spawn", "name": "a", "root": "/"})
	c.refused(t, control.KindPolicy, "mem", map[string]any{"op": "spawn", "name": "a", "policy": map[string]any{"mem": "1 parsec"}})
	c.refused(t, control.KindPolicy, "", map[string]any{"op": "spawn", "name": "a", "policy_name": "no-such-policy"})
	c.refused(t, control.KindSandbox, "no guest", map[string]any{"op": "stats", "guest": "psi-0"})
	c.spawn(t, "a", nil)
}

// A client that asks and never reads is dropped; nobody else notices.
func TestSlowClient(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	witness := dialAs(t, socket, 0, gid)
	witness.hello(t)
	conn := rawDial(t, socket)
	if _, err := conn.Write([]byte(helloFrame)); err != nil {
		t.Fatal(err)
	}
	refused := frame(`{"id":2,"op":"` + strings.Repeat("x", 4000) + `"}`)
	var err error
	for range 100000 {
		if _, err = conn.Write([]byte(refused)); err != nil {
			break
		}
	}
	if err == nil || os.IsTimeout(err) {
		t.Errorf("a client that does not read was not dropped: %v", err)
	}
	start := time.Now()
	witness.must(t, map[string]any{"op": "list"})
	if took := time.Since(start); took > scaled(time.Second) {
		t.Errorf("another client waited %v", took)
	}
}

// Whatever bytes come, the supervisor serves the next client.
func TestRandomFrames(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	base := helloFrame + frame(`{"id":2,"op":"list"}`) + frame(`{"id":3,"op":"close","guest":"psi-1","timeout":0.1}`) +
		frame(`{"id":4,"op":"reload","guest":"psi-1","policy":{"mem":1048576}}`)
	for range 300 {
		data := []byte(base)
		for range 1 + random.IntN(8) {
			data[random.IntN(len(data))] = byte(random.Uint32())
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(data[:1+random.IntN(len(data))])
		if random.IntN(2) == 0 {
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			_, _ = io.Copy(io.Discard, conn)
		}
		_ = conn.Close()
	}
	c := dialAs(t, socket, 11111, gid)
	c.hello(t)
	if list := string(c.must(t, map[string]any{"op": "list"}).OK); list != `{"guests":[]}` {
		t.Errorf("list: %s", list)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"id":1,"op":"hello","version":2,"client":"x"}`))
	f.Add([]byte(`{"id":2,"op":"spawn","name":"a","policy":{"mem":"1MiB"},"allowed_imports":["math"],"rootfs":null}`))
	f.Add([]byte(`{"id":3,"op":"close","guest":"psi-1","timeout":0.25}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := control.Decode(data)
		if err != nil {
			if control.Kind(err) != control.KindProtocol {
				t.Errorf("%q: kind %s: %v", data, control.Kind(err), err)
			}
			return
		}
		if _, known := control.Keys(r.Op); !known || r.Timeout < 0 {
			t.Errorf("%q was decoded to %+v", data, r)
		}
		if r.Op == "spawn" && (r.Name == "" || strings.ContainsAny(r.Name, "/\x00 ")) {
			t.Errorf("name %q", r.Name)
		}
	})
}
