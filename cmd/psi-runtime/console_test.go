package main

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func withTerminal(s *specs.Spec) { s.Process.Terminal = true }

// TestConsoleSocket: a detached container's terminal goes to whoever listens.
func TestConsoleSocket(t *testing.T) {
	c := newLine(t)
	path := filepath.Join(t.TempDir(), "console.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	master := make(chan *os.File, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		socket, err := conn.(*net.UnixConn).File()
		if err != nil {
			return
		}
		defer socket.Close()
		if f, err := receiveFile(socket); err == nil {
			master <- f
		}
	}()
	c.detached("create", "--console-socket", path, "-b", c.bundle("stty size; read x; echo got $x", withTerminal), "x")
	terminal := <-master
	defer terminal.Close()
	c.ok("start", "x")
	readLine(t, terminal, "0 0")
	if _, err := terminal.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	readLine(t, terminal, "hello") // the echo
	readLine(t, terminal, "got hello")
}

func TestTerminalFlagsAreChecked(t *testing.T) {
	c := newLine(t)
	if r := c.run("create", "-b", c.bundle("true", withTerminal), "x"); r.code != 1 || !strings.Contains(r.err, "without setting console socket") {
		t.Errorf("a terminal nobody gets: %d, %q", r.code, r.err)
	}
	if r := c.run("create", "--console-socket", "/x", "-b", c.bundle("true"), "x"); r.code != 1 || !strings.Contains(r.err, "cannot use console socket") {
		t.Errorf("a socket without a terminal: %d, %q", r.code, r.err)
	}
}

// TestRunOnTerminal: run in the foreground of a terminal gives the container one of
// its own, of the same size, and passes keys and output through.
func TestRunOnTerminal(t *testing.T) {
	c := newLine(t)
	host, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := host.Resize(console.WinSize{Height: 24, Width: 99}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.command("run", "-b", c.bundle("read x; stty size; echo got $x; exit 6", withTerminal), "x")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	if _, err := host.Write([]byte("key\n")); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for s := bufio.NewScanner(host); s.Scan(); { // ends with EIO
		text.WriteString(s.Text() + "\n")
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 6 {
		t.Errorf("exit code %d", code)
	}
	wants(t, "output", text.String(), "got key")
	wants(t, "output", text.String(), "24 99")
}

func TestExecTTY(t *testing.T) {
	c := newLine(t)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "x")
	host, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.command("exec", "-t", "x", "sh", "-c", "test -t 0 && echo a terminal; exit 3")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	readLine(t, host, "a terminal")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit code %d", code)
	}
}
