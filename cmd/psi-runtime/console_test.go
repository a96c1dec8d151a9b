package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func withTerminal(s *specs.Spec) { s.Process.Terminal = true }

// sentFiles listens on a unix socket, and returns the descriptors that are sent to it.
func sentFiles(t *testing.T) (path string, files <-chan *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	sent := make(chan *os.File)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if socket, err := conn.(*net.UnixConn).File(); err == nil {
				f, _ := receiveFile(socket)
				sent <- f
				socket.Close()
			}
			conn.Close()
		}
	}()
	return path, sent
}

// TestConsoleSocket: a detached process's terminal goes to whoever listens.
func TestConsoleSocket(t *testing.T) {
	c := newLine(t)
	path, sent := sentFiles(t)
	const script = "stty size; read x; echo got $x"
	bundle := c.bundle(script, withTerminal)
	talk := func(terminal *os.File) {
		t.Helper()
		defer terminal.Close()
		readLine(t, terminal, "0 0")
		if _, err := terminal.WriteString("hello\n"); err != nil {
			t.Fatal(err)
		}
		readLine(t, terminal, "hello") // the echo
		readLine(t, terminal, "got hello")
	}
	c.detached("create", "--console-socket", path, "-b", bundle, "created")
	terminal := <-sent
	c.ok("start", "created")
	talk(terminal)
	c.detached("run", "--detach", "--console-socket", path, "-b", bundle, "x")
	talk(<-sent)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "y")
	pidFile := filepath.Join(t.TempDir(), "pid")
	c.quiet("exec", "-d", "-t", "--console-socket", path, "--pid-file", pidFile, "y", "sh", "-c", script)
	talk(<-sent)
	reapFile(t, pidFile)
}

// reapFile waits for the process whose pid a file holds: one that exec has left to us.
func reapFile(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
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

// terminal is a pseudoterminal of the test's, of which a command line gets the other end.
type terminal struct {
	t     *testing.T
	host  console.Console
	slave *os.File
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	host, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		slave.Close()
		host.Close()
	})
	return &terminal{t, host, slave}
}

// start starts a command line on the terminal, in the foreground of a session of its own.
func (p *terminal) start(cmd *exec.Cmd) {
	p.t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *terminal) mode() unix.Termios {
	p.t.Helper()
	mode, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *mode
}

// TestTerminalIsGivenBack: however a command in the foreground ends, the caller's
// terminal is as it was; and while the program runs, it is raw.
func TestTerminalIsGivenBack(t *testing.T) {
	c := newLine(t)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "x")
	running := c.bundle("echo up; sleep 1000", withTerminal)
	missing := func(s *specs.Spec) { s.Process.Args = []string{"/no/such"} }
	failing := func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 1"}}}}
	}
	for name, tc := range map[string]struct {
		args []string
		kill string // container to kill when it is up
	}{
		"exits":            {[]string{"run", "-b", c.bundle("exit 3", withTerminal), "y"}, ""},
		"killed":           {[]string{"run", "-b", running, "y"}, "y"},
		"no program":       {[]string{"run", "-b", c.bundle("", withTerminal, missing), "y"}, ""},
		"does not start":   {[]string{"run", "-b", c.bundle("true", withTerminal, failing), "y"}, ""},
		"exec":             {[]string{"exec", "-t", "x", "sh", "-c", "exit 4"}, ""},
		"exec, no program": {[]string{"exec", "-t", "x", "/no/such"}, ""},
	} {
		p := newTerminal(t)
		before := p.mode()
		cmd := c.command(tc.args...)
		p.start(cmd)
		if tc.kill != "" {
			readLine(t, p.host, "up")
			if p.mode().Lflag&(unix.ECHO|unix.ICANON) != 0 {
				t.Errorf("%s: the terminal is not raw while the program runs", name)
			}
			c.ok("kill", tc.kill, "KILL")
		}
		_ = cmd.Wait()
		if after := p.mode(); after != before {
			t.Errorf("%s: the terminal was %+v and is %+v", name, before, after)
		}
	}
}

// TestTerminalResizes: what happens to the caller's terminal happens to the container's.
func TestTerminalResizes(t *testing.T) {
	c := newLine(t)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "x")
	const script = `trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done`
	for name, args := range map[string][]string{
		"run":  {"run", "-b", c.bundle(script, withTerminal), "y"},
		"exec": {"exec", "--tty", "x", "sh", "-c", script},
	} {
		p := newTerminal(t)
		cmd := c.command(args...)
		p.start(cmd)
		readLine(t, p.host, "up")
		if err := p.host.Resize(console.WinSize{Height: 12, Width: 34}); err != nil {
			t.Fatal(err)
		}
		readLine(t, p.host, "12 34")
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPIDFDSocket: a pidfd of the container's first process, or of exec's, goes to
// whoever listens.
func TestPIDFDSocket(t *testing.T) {
	c := newLine(t)
	path, received := sentFiles(t)
	pid := func(f *os.File) string {
		defer f.Close()
		data, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(f.Fd())))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(data), "Pid:\t")
		line, _, _ := strings.Cut(after, "\n")
		return line
	}
	c.detached("create", "--pidfd-socket", path, "-b", c.bundle("sleep 1000"), "x")
	wants(t, "state", c.ok("state", "x"), `"pid": `+pid(<-received)+`,`)
	c.ok("start", "x")
	c.detached("run", "-d", "--pidfd-socket", path, "-b", c.bundle("sleep 1000"), "y")
	wants(t, "state", c.ok("state", "y"), `"pid": `+pid(<-received)+`,`)
	done := make(chan string)
	go func() { done <- c.ok("run", "--pidfd-socket", path, "-b", c.bundle("echo done"), "z") }()
	if got := pid(<-received); got == "" || got == "-1" {
		t.Errorf("run sent a pidfd of pid %q", got)
	}
	wants(t, "run", <-done, "done")
	go func() { done <- c.ok("exec", "--pidfd-socket", path, "x", "sh", "-c", "echo done") }()
	if got := pid(<-received); got == "" || got == "-1" {
		t.Errorf("exec sent a pidfd of pid %q", got)
	}
	wants(t, "exec", <-done, "done")
}
