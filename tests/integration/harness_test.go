// Package integration drives the built programs as an engine or a person would: bundles on disk,
// the OCI command line, the peer runc beside it, real containers on whatever cgroup layout the
// machine has. The same tests run here and on the second kernel.
package integration

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// program returns the built psi-runtime; PSI_RUNTIME names another one.
func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PSI_RUNTIME")
	if path == "" {
		path = "../../bin/psi-runtime"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the tests need the built program: run `make build`: %v", err)
	}
	return path
}

// rootfs returns the built root file system; PSI_ROOTFS names another one.
func rootfs(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PSI_ROOTFS")
	if path == "" {
		path = "../../build/rootfs"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "usr/lib/psi/rootfs.json")); err != nil {
		t.Fatalf("the tests need the root file system: run `make rootfs`: %v", err)
	}
	return path
}

// result is what a finished command left.
type result struct {
	code           int
	stdout, stderr string
}

// invoke runs a command to its end, with a limit that suits the slow kernel too.
func invoke(t *testing.T, stdin, name string, args ...string) result {
	t.Helper()
	// Not the test's own context: clean-ups run when that has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	// Files, not pipes: a container that was created keeps its output open when the command has ended.
	stdout, stderr := unnamedFile(t), unnamedFile(t)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %s %s: %v", name, strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), content(t, stdout), content(t, stderr)}
}

// unnamedFile makes a temporary file that has no name any more.
func unnamedFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.CreateTemp("", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := os.Remove(file.Name()); err != nil {
		t.Fatal(err)
	}
	return file
}

// content reads a file from its start, whatever its position.
func content(t *testing.T, file *os.File) string {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// psi runs psi-runtime.
func psi(t *testing.T, args ...string) result {
	t.Helper()
	return invoke(t, "", program(t), args...)
}

// mustPsi runs psi-runtime and fails the test when that fails.
func mustPsi(t *testing.T, args ...string) string {
	t.Helper()
	r := psi(t, args...)
	if r.code != 0 {
		t.Fatalf("psi-runtime %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// publicDir makes a directory that a guest's own host user can reach; t.TempDir is 0700.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// bundleOf compiles a bundle that runs a script under a policy, given as a name or a document.
func bundleOf(t *testing.T, policy, script string) string {
	t.Helper()
	dir := publicDir(t)
	if strings.ContainsAny(policy, ":\n") {
		file := filepath.Join(dir, "policy.yml")
		if err := os.WriteFile(file, []byte(policy), 0o644); err != nil {
			t.Fatal(err)
		}
		policy = file
	}
	args := []string{"bundle", "--policy", policy, "--rootfs", rootfs(t), "-o", filepath.Join(dir, "bundle")}
	if script != "" {
		file := filepath.Join(dir, "script.py")
		if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--entry", file)
	}
	mustPsi(t, args...)
	return filepath.Join(dir, "bundle")
}

// newID returns a container id that no other test uses.
func newID(t *testing.T) string {
	t.Helper()
	return "psi-test-" + strings.ToLower(rand.Text()[:10])
}

// watched starts the leak check of a test.
func watched(t *testing.T) {
	t.Helper()
	leakcheck.Check(t)
}
