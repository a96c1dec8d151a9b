package supervisor

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// listening is a guest's server at a port: it answers each connection with its number,
// beginning with 1, and ends it.
const listening = `
import socket, threading
def serve(host, port):
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    def loop():
        number = 0
        while True:
            client = listener.accept()[0]
            number += 1
            client.sendall(str(number).encode())
            client.close()
    threading.Thread(target=loop, daemon=True).start()
    return listener
`

// connectTo asks for a connection to a guest's port.
func (c *testClient) connectTo(t testing.TB, g *testGuest, port int) net.Conn {
	t.Helper()
	a := c.must(t, map[string]any{"op": "connect", "guest": g.id, "port": port, "timeout": scaled(5 * time.Second).Seconds()})
	if a.file == nil {
		t.Fatal("a connection without a descriptor")
	}
	defer a.file.Close()
	conn, err := net.FileConn(a.file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(scaled(20 * time.Second)))
	return conn
}

func wantSaid(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	if got, err := io.ReadAll(conn); err != nil || string(got) != want {
		t.Errorf("the guest says %q, %v, want %q", got, err, want)
	}
}

func TestConnectToAnExposedPort(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "server", map[string]any{"expose": []int{27183, 27184}})
	ask := func(port int) map[string]any {
		return map[string]any{"op": "connect", "guest": g.id, "port": port, "timeout": 5}
	}
	c.refused(t, control.KindSandbox, "nothing listens there", ask(27183))
	c.refused(t, control.KindPolicy, "expose: [27185] would", ask(27185))
	c.refused(t, control.KindProtocol, "needs a port", ask(0))
	if got := g.run(t, listening+"serve('127.0.0.1', 27183); serve('::1', 27184); post(1)"); got != "1" {
		t.Fatalf("posted %s", got)
	}
	wantSaid(t, c.connectTo(t, g, 27183), "1")
	wantSaid(t, c.connectTo(t, g, 27184), "1")
	// On the host there is nothing.
	if conn, err := net.Dial("tcp", "127.0.0.1:27183"); err == nil {
		_ = conn.Close()
		t.Error("the port is open on the host")
	}
	wantSaid(t, c.connectTo(t, g, 27183), "2")
}

// What a guest can do to those who connect: nothing beyond the time they give it.
func TestConnectToAHostileGuest(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "hostile", map[string]any{"expose": []int{8000}, "tcp": []string{"127.0.0.1:9"}})
	refusals := `
import socket
def tried(host, port):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try: s.bind((host, port)); s.listen()
    except OSError as e: return e.errno
    return s.getsockname()[1]
post([tried("127.0.0.1", 8001), tried("0.0.0.0", 0), tried("127.0.0.2", 8000), tried("::1", 7999), tried("127.0.0.1", 9)])
`
	if got := g.run(t, refusals); got != "[1 1 1 1 1]" {
		t.Errorf("binding elsewhere: %s, want EPERM each time", got)
	}
	// It cannot reach its own port: who comes there is the host.
	own := "s = socket.socket(); s.bind(('127.0.0.1', 8000)); s.listen(1)\ntry: socket.create_connection(('127.0.0.1', 8000), 2); post(0)\nexcept OSError as e: post(e.errno)"
	if got := g.run(t, own); got != "1" {
		t.Errorf("connecting to its own port: %s, want EPERM", got)
	}
	// It listens and never accepts: the backlog takes some, and then time is up.
	begin := time.Now()
	for range 8 {
		a, err := c.ask(map[string]any{"op": "connect", "guest": g.id, "port": 8000, "timeout": 0.3})
		if err == nil {
			defer a.file.Close()
			continue
		}
		if a.Error.Kind != control.KindTimeout || !strings.Contains(a.Error.Message, "nothing has accepted the connection within 300ms") {
			t.Errorf("a guest that does not accept: %v", err)
		}
		begin = time.Time{}
		break
	}
	if !begin.IsZero() {
		t.Error("connections without end to a guest that does not accept")
	}
	// It dies while somebody waits.
	wait, err := c.post(map[string]any{"op": "connect", "guest": g.id, "port": 8000, "timeout": 3000})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	c.must(t, map[string]any{"op": "kill", "guest": g.id})
	select {
	case a := <-wait:
		if a.Error == nil {
			t.Error("a connection to a guest that is dead")
		}
	case <-time.After(scaled(10 * time.Second)):
		t.Error("the guest is dead, and somebody still waits for it to accept")
	}
}

// A connection is cut when its guest ends, and its descriptor keeps nothing alive.
func TestConnectionEndsWithItsGuest(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "server", map[string]any{"expose": []int{8000}})
	g.run(t, "import socket; s = socket.create_server(('127.0.0.1', 8000)); post(1)")
	conn := c.connectTo(t, g, 8000)
	g.run(t, "held = s.accept(); post(1)")
	c.must(t, map[string]any{"op": "close", "guest": g.id})
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("after the guest's end: %d bytes, %v", n, err)
	}
}

func TestConnectIsForTheOwner(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	alice, bob, root := dialAs(t, socket, 11111, gid), dialAs(t, socket, 22222, gid), dialAs(t, socket, 0, gid)
	again := dialAs(t, socket, 11111, gid)
	for _, c := range []*testClient{alice, bob, root, again} {
		c.hello(t)
	}
	g := alice.spawn(t, "server", map[string]any{"expose": []int{8000}})
	g.run(t, listening+"serve('0.0.0.0', 8000); post(1)")
	for _, other := range []*testClient{bob, root} {
		other.refused(t, control.KindSandbox, "no guest", map[string]any{"op": "connect", "guest": g.id, "port": 8000})
	}
	wantSaid(t, alice.connectTo(t, g, 8000), "1")
	wantSaid(t, again.connectTo(t, g, 8000), "2") // another connection of the same user
}

func TestReloadOfExpose(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "server", map[string]any{"expose": []int{8000}})
	g.run(t, listening+"serve('127.0.0.1', 8000); post(1)")
	conn := c.connectTo(t, g, 8000)
	c.reload(t, g, map[string]any{"expose": []int{8001}})
	c.refused(t, control.KindPolicy, "expose: [8000] would", map[string]any{"op": "connect", "guest": g.id, "port": 8000})
	wantSaid(t, conn, "1") // it was there before
	g.run(t, "serve('127.0.0.1', 8001); post(1)")
	wantSaid(t, c.connectTo(t, g, 8001), "1")
	if got := g.run(t, "try: serve('127.0.0.1', 8000); post(0)\nexcept OSError as e: post(e.errno)"); got != "1" {
		t.Errorf("binding a port that was taken away: %s, want EPERM", got)
	}
	c.reload(t, g, map[string]any{})
	c.refused(t, control.KindPolicy, "does not expose", map[string]any{"op": "connect", "guest": g.id, "port": 8001})

	// An endpoint cannot come where the guest still listens; all stays as it is.
	c.refused(t, control.KindSandbox, "port 8001", map[string]any{"op": "reload", "guest": g.id, "policy": map[string]any{"tcp": []string{"10.0.0.1:8001"}}})

	mute := c.spawn(t, "mute", nil)
	c.refused(t, control.KindPolicy, "expose of a running guest cannot begin", map[string]any{"op": "reload", "guest": mute.id, "policy": map[string]any{"expose": []int{8000}}})
}
