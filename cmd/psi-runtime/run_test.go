package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestRunExitCodes(t *testing.T) {
	c := newLine(t)
	for script, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 255": 255, "sh -c 'kill -9 $$'": 137, "/no/such": 127,
	} {
		if r := c.run("run", "--bundle", c.bundle(script), "x"); r.code != want {
			t.Errorf("%q: exit code %d, want %d: %s", script, r.code, want, r.err)
		}
	}
	r := c.run("run", "--bundle", c.bundle("true", func(s *specs.Spec) { s.Process.Args = []string{"/no/such"} }), "x")
	if r.code != 1 {
		t.Errorf("a missing program: exit code %d", r.code)
	}
	wants(t, "a missing program", r.err, "no such file or directory")
	if r := c.run("run", "-b", "/no/such", "x"); r.code != 1 {
		t.Errorf("a missing bundle: exit code %d", r.code)
	}
}

// TestRunKilledInit: when a signal ends the first process itself, 128 + N.
func TestRunKilledInit(t *testing.T) {
	c := newLine(t)
	cmd := c.command("run", "-b", c.bundle("echo up; sleep 1000", func(s *specs.Spec) {
		s.Process.Args = []string{"/bin/sleep", "1000"}
	}), "x")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { return strings.Contains(c.run("state", "x").out, "running") })
	c.ok("kill", "x", "KILL")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

// TestForegroundForwardsSignals: what run, or exec, is sent goes to its process.
func TestForegroundForwardsSignals(t *testing.T) {
	c := newLine(t)
	const script = `trap "echo term; exit 3" TERM; trap "echo usr1" USR1; echo up; while :; do sleep 0.02; done`
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "y")
	for name, args := range map[string][]string{
		"run":  {"run", "-b", c.bundle(script), "x"},
		"exec": {"exec", "y", "sh", "-c", script},
	} {
		cmd := c.command(args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readLine(t, out, "up")
		for _, sent := range []struct {
			signal unix.Signal
			says   string
		}{{unix.SIGUSR1, "usr1"}, {unix.SIGTERM, "term"}} {
			if err := cmd.Process.Signal(sent.signal); err != nil {
				t.Fatal(err)
			}
			readLine(t, out, sent.says)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 3 {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

func readLine(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var got []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("reading %q: got %q, then %v", want, got, err)
		}
		if b[0] == '\n' {
			break
		}
		got = append(got, b[0])
	}
	if s := strings.TrimSuffix(string(got), "\r"); s != want {
		t.Fatalf("read %q, want %q", s, want)
	}
}

// TestRunAdoptsOrphans: without a pid namespace, what the container leaves becomes
// our child, is reaped, and does not end the run early.
func TestRunAdoptsOrphans(t *testing.T) {
	c := newLine(t)
	bundle := c.bundle("(sh -c 'exit 9' & ) ; sleep 0.1; exit 4", func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:]
	})
	if r := c.run("run", "-b", bundle, "x"); r.code != 4 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}

func TestRunStdio(t *testing.T) {
	c := newLine(t)
	cmd := c.command("run", "-b", c.bundle("cat; echo oops >&2; echo via /dev/stdout >/dev/stdout"), "x")
	cmd.Stdin = strings.NewReader("hello\n")
	r := c.wait(cmd)
	if r.out != "hello\nvia /dev/stdout\n" || !strings.Contains(r.err, "oops") {
		t.Errorf("stdout %q, stderr %q", r.out, r.err)
	}
}

// TestRunStdioWithUserNamespace: a pipe is the guest's own, so /dev/stdout opens.
func TestRunStdioWithUserNamespace(t *testing.T) {
	c := newLine(t)
	bundle := c.bundle("echo one >/proc/self/fd/1; cat /proc/self/fd/0", withPolicy("{}"))
	cmd := c.command("run", "-b", bundle, "x")
	cmd.Stdin = strings.NewReader("two\n")
	if r := c.wait(cmd); r.out != "one\ntwo\n" {
		t.Errorf("stdout %q, stderr %q", r.out, r.err)
	}
}

func TestRunKeepAndDetach(t *testing.T) {
	c := newLine(t)
	c.ok("run", "--keep", "-b", c.bundle("exit 0"), "kept")
	if s := c.ok("state", "kept"); !strings.Contains(s, `"status": "stopped"`) {
		t.Errorf("state of a kept container: %s", s)
	}
	c.ok("delete", "kept")
	pidFile := filepath.Join(t.TempDir(), "pid")
	c.detached("run", "-d", "--pid-file", pidFile, "-b", c.bundle("sleep 1000"), "det")
	var s struct{ PID int }
	if err := json.Unmarshal([]byte(c.ok("state", "det")), &s); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(pidFile); err != nil || string(data) != strconv.Itoa(s.PID) {
		t.Errorf("pid file %q, %v; state says %d", data, err, s.PID)
	}
}

func TestPreserveFDs(t *testing.T) {
	c := newLine(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := c.command("run", "--preserve-fds", "1", "-b", c.bundle("echo hi >&3; ls /proc/self/fd | cat"), "x")
	cmd.ExtraFiles = []*os.File{w}
	got := c.wait(cmd)
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil || string(text) != "hi\n" {
		t.Errorf("fd 3 got %q, %v; %s", text, err, got.err)
	}
	// One that the caller did not open is refused, not replaced by one of ours.
	got = c.run("run", "--preserve-fds", "5", "-b", c.bundle("true"), "x")
	if got.code != 1 || !strings.Contains(got.err, "file descriptor 3") {
		t.Errorf("missing descriptors: %d, %q", got.code, got.err)
	}
}

// TestSocketActivation: what systemd passes to psi-runtime itself is the container's, which is
// told so; what it passed to another process is not.
func TestSocketActivation(t *testing.T) {
	c := newLine(t)
	bundle := c.bundle("echo $LISTEN_FDS $LISTEN_PID $$; ls /proc/$$/fd; true")
	for pid, want := range map[string]string{"$$": "1 1 1\n0\n1\n2\n3\n", "1": "1\n0\n1\n2\n"} {
		run := c.command("run", "-b", bundle, "x")
		cmd := exec.Command("sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=` + pid + ` exec "$@"`, "sh", os.Args[0]}, run.Args[1:]...)...)
		cmd.Env = run.Env
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{f}
		if r := c.wait(cmd); r.code != 0 || r.out != want {
			t.Errorf("LISTEN_PID=%s: exit code %d, %q: %s", pid, r.code, r.out, r.err)
		}
		f.Close()
	}
	cmd := c.command("run", "-b", bundle, "x")
	cmd = exec.Command("sh", append([]string{"-c", `LISTEN_FDS=many LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0]}, cmd.Args[1:]...)...)
	cmd.Env = append(os.Environ(), cliEnv+"=1")
	if r := c.wait(cmd); r.code != 1 || !strings.Contains(r.err, "LISTEN_FDS") {
		t.Errorf("%+v", r)
	}
}

// TestNoDescriptorLeaks: the container has its three streams and nothing else.
func TestNoDescriptorLeaks(t *testing.T) {
	c := newLine(t)
	cmd := c.command("run", "-b", c.bundle("ls /proc/$$/fd; true"), "x")
	f, err := os.Open(os.DevNull) // what conmon's pipes are to a runtime
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.ExtraFiles = []*os.File{f, f, f}
	if r := c.wait(cmd); r.out != "0\n1\n2\n" {
		t.Errorf("descriptors %q: %s", r.out, r.err)
	}
}
