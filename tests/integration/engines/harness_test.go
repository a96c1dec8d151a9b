// Package engines drives real engines with psi-runtime in runc's place: podman, Docker, containerd
// by ctr, and containerd's CRI plugin by crictl and critest. Each test starts its own engine, with
// storage, sockets and cgroups of its own, and ends it; no registry is reached: the images are psi's
// own root file system, a pause program and busybox.
package engines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// shared is what the tests of one run have in common. Images are built when a test first asks for
// one: the second kernel has not what each of them is made of.
type shared struct {
	dir     string // of everything temporary
	runtime string // psi-runtime
	// OCI archives:
	python  func() (string, error) // the root file system
	pause   func() (string, error) // a pod's sandbox
	busybox func() (string, error) // what critest runs
}

// built is set by TestMain, before any test runs, and only read afterwards.
var built shared

const (
	pythonImage  = "localhost/psi-python:3.11"
	pauseImage   = "localhost/psi-pause:1"
	busyboxImage = "localhost/psi-busybox:1"
)

func TestMain(m *testing.M) {
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "engines:", err)
		code = 1
	}
	os.Exit(code)
}

func prepareAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "engines-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	built = shared{
		dir:    dir,
		python: sync.OnceValues(buildPython), pause: sync.OnceValues(buildPause), busybox: sync.OnceValues(buildBusybox),
	}
	if built.runtime, err = filepath.Abs("../../../bin/psi-runtime"); err != nil {
		return 1, err
	}
	if path := os.Getenv("PSI_RUNTIME"); path != "" {
		built.runtime = path
	}
	return m.Run(), nil
}

// need returns an engine's program.
func need(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: run `make setup`", name)
	}
	return path
}

// result is what a finished command left.
type result struct {
	code           int
	stdout, stderr string
}

// command is a program with the arguments that every call has, such as an engine's storage.
type command []string

// run runs it to its end.
func (c command) run(t *testing.T, args ...string) result {
	t.Helper()
	return c.feed(t, "", args...)
}

// feed runs it with a standard input.
func (c command) feed(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	// Not the test's own context: clean-ups run when that has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	all := append(append([]string{}, c[1:]...), args...)
	cmd := exec.CommandContext(ctx, c[0], all...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %s: %v\n%s", strings.Join(append(c, args...), " "), err, stderr.String())
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// must runs it, and fails the test when that fails; it returns what was printed, trimmed.
func (c command) must(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 {
		t.Fatalf("%s: exit %d\n%s%s", strings.Join(append(c, args...), " "), r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// expect compares a command's outcome.
func (r result) expect(t *testing.T, code int, stdout string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.stdout, stdout) {
		t.Errorf("exit %d, stdout %q, stderr %q: want exit %d and %q", r.code, r.stdout, r.stderr, code, stdout)
	}
}

// python is the command of a container that runs a script.
func python(script string) []string {
	return []string{"/usr/bin/python3", "-I", "-S", "-c", script}
}

// connect tries an endpoint that is not there: without a policy the kernel's network says so, with one
// the policy does.
const connect = "import _socket\ntry:\n    _socket.socket().connect(('127.0.0.1', 9))\nexcept OSError as error:\n    print(type(error).__name__)"

// memoryLimit prints the container's own limit.
const memoryLimit = `
import os
for name in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"):
    if os.path.exists(name):
        print(open(name).read())`

// tempDir is a directory for an engine; t.TempDir is 0700 and has too long a name for sockets.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing an engine's files: %v", err)
		}
	})
	return dir
}

// daemon starts an engine's daemon, waits until it is ready, and ends it, by its pid, with the test.
func daemon(t *testing.T, cmd *exec.Cmd, ready func() bool) *os.Process {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-ended
			t.Errorf("%s did not end on SIGTERM", cmd.Path)
		}
		if t.Failed() {
			t.Logf("%s logged:\n%s", cmd.Path, lastLines(log.String(), 40))
		}
	})
	waitFor(t, filepath.Base(cmd.Path)+" to be ready", ready)
	return cmd.Process
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// waitFor polls until a condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cgroupParent names a top group of the test's own, for engines that take one, and removes it in
// every hierarchy afterwards: engines leave the groups above their containers'.
func cgroupParent(t *testing.T) string {
	t.Helper()
	name := "/psi-test-" + filepath.Base(built.dir)
	t.Cleanup(func() { removeGroups(name) })
	return name
}

// removeGroups removes an engine's groups, deepest first, as far as nobody is in them.
func removeGroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup" + name, "/sys/fs/cgroup/*" + name} {
		found, _ := filepath.Glob(pattern)
		for _, top := range found {
			var groups []string
			filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					groups = append(groups, path)
				}
				return nil
			})
			for i := len(groups) - 1; i >= 0; i-- {
				syscall.Rmdir(groups[i])
			}
		}
	}
}
