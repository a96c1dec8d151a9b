package integration

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// upper is a guest that answers each connection in capitals once it has read all of it.
const upper = `
import socket, threading
listener = socket.create_server(("127.0.0.1", 27191), backlog=16)
def serve(client):
    said = b""
    while piece := client.recv(1000):
        said += piece
    client.sendall(said.upper())
    client.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
`

func TestConnectToAnExposedPort(t *testing.T) {
	watched(t)
	bundle, id := bundleOf(t, "expose: [27191, 27192]\n", upper), newID(t)
	mustPsi(t, "create", "--bundle", bundle, id)
	t.Cleanup(func() { psi(t, "delete", "--force", id) })
	mustPsi(t, "start", id)
	waitFor(t, func() bool { // until it listens
		return invoke(t, "hello", program(t), "connect", id, "27191").stdout == "HELLO"
	})
	for port, want := range map[string]string{"27192": "nothing listens there", "27193": "expose: [27193] would", "0": "is not a port"} {
		if r := psi(t, "connect", id, port); r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("port %s: exit code %d, %s, want …%s…", port, r.code, r.stderr, want)
		}
	}

	// The same as a unix socket.
	path := filepath.Join(publicDir(t), "guest.sock")
	serving := exec.Command(program(t), "connect", "--listen", path, id, "27191")
	if err := serving.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = serving.Process.Kill() }()
	waitFor(t, func() bool { _, err := os.Stat(path); return err == nil })
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket: %v, %v", info, err)
	}
	for range 3 {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("again")); err != nil {
			t.Error(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "AGAIN" {
			t.Errorf("by the socket the guest says %q, %v", got, err)
		}
		conn.Close()
	}
	if err := serving.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := serving.Wait(); err != nil {
		t.Errorf("ending: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
	mustPsi(t, "kill", id, "KILL")
	waitFor(t, func() bool { return state(t, id)["status"] == "stopped" })
	mustPsi(t, "delete", id)
}
