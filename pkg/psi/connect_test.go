package psi

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/policy"
)

func TestConnect(t *testing.T) {
	c := open(t)
	exposing, err := policy.Defaults().ExposePort(8000)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := c.Spawn(soon(t), "server", SpawnOptions{Policy: Of(exposing)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, sb, "import socket; s = socket.socket(); s.bind(('127.0.0.1', 8000)); post(1)")
	recv(t, sb)
	var end *SandboxError
	if conn, err := sb.Connect(soon(t), 8000); !asSandbox(err, &end) {
		t.Errorf("nobody listens: %v, %v", conn, err)
	}
	var wrong *PolicyError
	if conn, err := sb.Connect(soon(t), 8001); !errors.As(err, &wrong) {
		t.Errorf("a port that is not exposed: %v, %v", conn, err)
	}
	run(t, sb, "s.listen(0); post(1)")
	recv(t, sb)
	conn, err := sb.Connect(soon(t), 8000)
	if err != nil {
		t.Fatal(err)
	}
	run(t, sb, "c = s.accept()[0]; c.sendall(c.recv(10).upper()); c.close(); post(1)")
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(conn); err != nil || string(said) != "HELLO" {
		t.Errorf("the guest says %q, %v", said, err)
	}
	conn.Close()
	recv(t, sb)

	// A guest that does not accept takes no longer than the context.
	var held []net.Conn
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		conn, err := sb.Connect(ctx, 8000)
		cancel()
		if err == nil {
			held = append(held, conn)
			continue
		}
		if !isTimeout(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a guest that does not accept: %v", err)
		}
		break
	}
	if len(held) == 8 {
		t.Error("connections without end")
	}
	for _, conn := range held {
		conn.Close()
	}
	if err := sb.Close(soon(t), Grace); err != nil {
		t.Fatal(err)
	}
	if conn, err := sb.Connect(soon(t), 8000); err == nil {
		t.Errorf("connected to a sandbox that is closed: %v", conn)
	}
}
