package supervisor

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

// echoServer answers "pong" on a loopback port of the host.
func echoServer(t *testing.T) (address, port string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("pong"))
			_ = conn.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return listener.Addr().String(), port
}

// chatServer answers what it is sent, on a loopback port of the host.
func chatServer(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	return listener.Addr().String()
}

func connect(host, port string) string {
	return "import socket\ntry:\n post(socket.create_connection(('" + host + "', " + port + "), 5).recv(4).decode())\nexcept OSError as e: post(type(e).__name__)"
}

func TestEndpoints(t *testing.T) {
	_, c := embedded(t)
	address, port := echoServer(t)
	_, otherPort := echoServer(t)
	g := c.spawn(t, "caller", map[string]any{"tcp": []any{address}})
	if got := g.run(t, connect("127.0.0.1", port)); got != "pong" {
		t.Errorf("allowed endpoint: %s", got)
	}
	if got := g.run(t, connect("127.0.0.1", otherPort)); got == "pong" {
		t.Errorf("an endpoint that no rule names answered")
	}
	c.must(t, map[string]any{"op": "reload", "guest": g.id, "policy": map[string]any{"tcp": []any{"127.0.0.1:" + otherPort}}})
	if ev := c.event(t, control.Hotload, scaled(5*time.Second)); ev["guest"] != g.id {
		t.Errorf("event: %v", ev)
	}
	if got := g.run(t, connect("127.0.0.1", port)); got == "pong" {
		t.Errorf("an endpoint that was taken away answered")
	}
	if got := g.run(t, connect("127.0.0.1", otherPort)); got != "pong" {
		t.Errorf("a new endpoint: %s", got)
	}
}

func TestReloadLimits(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "grower", map[string]any{"mem": "64MiB"})
	reload := func(p map[string]any) map[string]any {
		return map[string]any{"op": "reload", "guest": g.id, "policy": p}
	}
	c.must(t, reload(map[string]any{"mem": "192MiB"}))
	if got := g.run(t, "b = bytearray(100 << 20); post(len(b))"); got != "104857600" {
		t.Errorf("posted %s", got)
	}
	c.refused(t, control.KindPolicy, "spawn a new guest", reload(map[string]any{"mem": "192MiB", "imports": []any{"math"}}))
	drain(c)
	c.must(t, reload(map[string]any{"mem": "192MiB", "wall_ms": 1}))
	if e := c.exited(t, scaled(5*time.Second)); e["cause"] != "wall" {
		t.Errorf("exited: %v", e)
	}
}

func TestCheckReload(t *testing.T) {
	base := parsePolicy(t, `{"tcp": ["example.org:443", "10.0.0.1:1"]}`)
	for text, want := range map[string]string{
		`{"tcp": ["example.org:443"]}`:                      "",
		`{"tcp": ["example.org:80", "10.9.9.9:1"]}`:         "",
		`{"tcp": ["example.com:443"], "tmp": "2MiB"}`:       "",
		`{"tcp": ["example.org:443"], "cpu": 2, "pids": 9}`: "",
		`{"tmp": 0}`:            "tmp",
		`{"preload": ["math"]}`: "preload",
		`{"message": "1MiB", "output": "1MiB", "open_files": 99, "tcp": ["example.org:1"]}`: "",
		`{"imports": []}`: "imports",
	} {
		err := checkReload(base, parsePolicy(t, text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func parsePolicy(t *testing.T, text string) policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestReloadModules changes the import list of a guest that gets around its agent: the
// files are what counts.
func TestReloadModules(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "modules", map[string]any{"imports": []any{"math"}})
	g.run(t, `plain = __builtins__.__import__.__self__._import
sys = plain("sys")
def load(name):
    ours, sys.meta_path[:] = sys.meta_path[:], [e for e in sys.meta_path if type(e) is type]
    try: plain(name); return "loaded"
    except ImportError as e: return type(e).__name__
    finally: sys.meta_path[:] = ours
post("ready")`)
	attempt := func(name string) string { return g.run(t, "post(load('"+name+"'))") }
	statement := func(name string) string {
		return g.run(t, "try:\n    import "+name+"\n    post('loaded')\nexcept ImportError as e: post(str(e))")
	}
	const none, loaded = "ModuleNotFoundError", "loaded"
	check := func(when, name, files, list string) {
		t.Helper()
		if got := attempt(name); got != files {
			t.Errorf("%s: the files of %s: %s, want %s", when, name, got, files)
		}
		if got := statement(name); !strings.Contains(got, list) {
			t.Errorf("%s: import %s: %s, want %s", when, name, got, list)
		}
	}
	check("at first", "csv", none, "list allows math")
	check("at first", "sqlite3", none, "list allows math")
	c.reload(t, g, map[string]any{"imports": []any{"csv", "queue"}})
	check("with csv", "csv", loaded, loaded)
	check("with csv", "sqlite3", none, "list allows csv, queue")
	c.reload(t, g, map[string]any{"imports": []any{"sqlite3"}})
	check("with sqlite3", "sqlite3", loaded, loaded) // a new shared library too
	check("with sqlite3", "queue", none, "list allows sqlite3")
	check("with sqlite3", "csv", loaded, "list allows sqlite3") // it keeps what it has
	c.reload(t, g, map[string]any{})
	check("with everything", "ctypes", loaded, loaded)
	other := c.spawn(t, "other", map[string]any{"imports": []any{"math"}})
	other.run(t, "import math\npost('ready')")
	c.refused(t, control.KindPolicy, "mem", map[string]any{"op": "reload", "guest": other.id, "policy": map[string]any{"imports": []any{"csv"}, "mem": "1"}})
	if got := other.run(t, "try:\n    import csv\nexcept ImportError as e: post(str(e))"); !strings.Contains(got, "list allows math") {
		t.Errorf("after a reload that failed: %s", got)
	}
}
