package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/engine"
	"github.com/psi-runtime/psi/internal/leakcheck"
	"github.com/psi-runtime/psi/internal/testroot"
)

// cliEnv makes the test binary behave as psi-runtime; children inherit it.
const cliEnv = "PSI_TEST_CLI"

var testRoot string

func TestMain(m *testing.M) {
	container.MaybeInit()
	if os.Getenv(cliEnv) != "" {
		os.Exit(execute(os.Args))
	}
	if units := os.Getenv(systemdEnv); units != "" {
		fmt.Fprintln(os.Stderr, "becoming systemd:", becomeSystemd(units))
		os.Exit(1)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "cmd/psi-runtime: the tests start containers and need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "runtime-test")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755)
	}
	testRoot = filepath.Join(dir, "rootfs")
	if err == nil {
		err = testroot.Make(testRoot, "stty")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// line is a state root of the test's own and the command lines run with it.
type line struct {
	t    *testing.T
	root string
}

func newLine(t *testing.T) *line {
	t.Helper()
	leakcheck.Check(t)
	return &line{t: t, root: filepath.Join(t.TempDir(), "root")}
}

// command prepares psi-runtime with the test's --root.
func (c *line) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", c.root}, args...)...)
	cmd.Env = append(os.Environ(), cliEnv+"=1")
	return cmd
}

type result struct {
	code     int
	out, err string
}

// run runs a command line to its end.
func (c *line) run(args ...string) result {
	c.t.Helper()
	return c.wait(c.command(args...))
}

func (c *line) wait(cmd *exec.Cmd) result {
	c.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// ok runs a command line that must succeed and returns its output.
func (c *line) ok(args ...string) string {
	c.t.Helper()
	r := c.run(args...)
	if r.code != 0 {
		c.t.Fatalf("%v: exit code %d: %s", args, r.code, r.err)
	}
	return r.out
}

// quiet runs a command line that leaves a process behind, which must not hold a
// pipe that somebody reads to the end.
func (c *line) quiet(args ...string) {
	c.t.Helper()
	cmd := c.command(args...)
	log, err := os.CreateTemp(c.t.TempDir(), "log")
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		c.t.Fatalf("%v: %v: %s", args, err, text)
	}
}

// detached runs a command line that leaves a container behind; its last argument
// is the container's id.
func (c *line) detached(args ...string) {
	c.t.Helper()
	c.t.Cleanup(func() { c.run("delete", "--force", args[len(args)-1]) })
	c.quiet(args...)
}

// bundle writes a bundle that runs script under sh; change edits the spec.
func (c *line) bundle(script string, change ...func(*specs.Spec)) string {
	c.t.Helper()
	s := container.ExampleSpec(false)
	s.Process.Terminal = false
	s.Process.Args = []string{"/bin/sh", "-c", script}
	s.Process.Rlimits = nil
	s.Root.Path = testRoot
	for _, f := range change {
		f(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		c.t.Fatal(err)
	}
	dir := c.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, specFile), data, 0o644); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// withPolicy turns the spec into one of psi's own with a policy.
func withPolicy(document string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Annotations = map[string]string{container.AnnotationPolicy: document, "io.psi.ids": "auto"}
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: container.FirstID, Size: 1}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Process.Capabilities = &specs.LinuxCapabilities{}
		s.Mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
		}
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s it is still not true that %s", what)
		}
	}
}

func wants(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: %q does not contain %q", what, got, want)
	}
}

// lacksFiles says why this host has no LSM programs; nil if it has.
func lacksFiles() error { return newGuard(engine.Record{}).lacksFiles() }
