package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/leakcheck"
	"github.com/psi-runtime/psi/internal/testroot"
)

// testRoot is a root file system with a shell, made once for all tests.
var testRoot string

func TestMain(m *testing.M) {
	MaybeInit()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getenv(crashEnv) != "" {
		return createAndHang()
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "internal/container: the tests start containers and need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "container-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	testRoot = filepath.Join(dir, "rootfs")
	if err := testroot.Make(testRoot, "unshare"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

const placeholder = FirstID

// autoSpec is a small bundle of psi's kind: all namespaces, ids of its own, a
// read-only root, no capabilities. script runs under sh.
func autoSpec(script string) *specs.Spec {
	s := plainSpec(script)
	s.Annotations = map[string]string{annotationIDs: "auto"}
	s.Root.Readonly = true
	s.Process.Capabilities = &specs.LinuxCapabilities{}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: placeholder, Size: 1}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	return s
}

// plainSpec is what runc's users write: root on the host, no user namespace.
func plainSpec(script string) *specs.Spec {
	var namespaces []specs.LinuxNamespace
	for _, t := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.MountNamespace, specs.NetworkNamespace,
		specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	} {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: t})
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", NoNewPrivileges: true,
			Env: []string{"PATH=/bin"},
		},
		Root: &specs.Root{Path: testRoot},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=1m"}},
		},
		Linux: &specs.Linux{Namespaces: namespaces},
	}
}

// fixture is one test's own run directory and state root.
type fixture struct {
	t   *testing.T
	run string
	n   int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	leakcheck.Check(t)
	// Not t.TempDir: guests must be able to walk through, and it is 0700.
	dir, err := os.MkdirTemp(filepath.Dir(testRoot), "run-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, run: filepath.Join(dir, "psi")}
	t.Cleanup(func() {
		defer os.RemoveAll(dir)
		_ = os.Remove(f.root()) // fails, and is reported, if there is something in it
		// Tidying is put off while others on this machine are creating.
		eventually(t, "the run directory is empty", func() bool {
			if err := runDir(f.run).tidy(nil); err != nil {
				t.Fatal(err)
			}
			left, err := filepath.Glob(filepath.Join(f.run, "*"))
			return err == nil && len(left) == 0
		})
	})
	return f
}

func (f *fixture) root() string { return filepath.Join(f.run, "containers") }

// options are for a new container of the test.
func (f *fixture) options(s *specs.Spec) CreateOptions {
	f.n++
	return CreateOptions{
		Root: f.root(), RunDir: f.run, Bundle: "/", Spec: s,
		ID: fmt.Sprintf("test-%d-%d", os.Getpid(), f.n), ClientUID: 0, ClientGID: 0,
	}
}

func (f *fixture) create(o CreateOptions) *Container {
	f.t.Helper()
	c, err := Create(context.Background(), o)
	if err != nil {
		f.t.Fatalf("creating: %v", err)
	}
	f.t.Cleanup(func() {
		if err := c.Delete(true); err != nil {
			f.t.Errorf("deleting %s: %v", c.ID(), err)
		}
	})
	return c
}

// start creates and starts a container and returns what it writes.
func (f *fixture) start(s *specs.Spec) (*Container, io.Reader) {
	f.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { r.Close() })
	o := f.options(s)
	o.Stdout, o.Stderr = w, w
	c := f.create(o)
	w.Close()
	if err := c.Start(); err != nil {
		f.t.Fatalf("starting: %v", err)
	}
	return c, r
}

// output runs a container to its end and returns what it wrote and its status.
func (f *fixture) output(s *specs.Spec) (string, ExitStatus) {
	f.t.Helper()
	c, r := f.start(s)
	text, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	status, err := c.Wait()
	if err != nil {
		f.t.Fatalf("waiting: %v", err)
	}
	return string(text), status
}

// line reads one line, which tells that a guest is up.
func line(t *testing.T, r io.Reader) string {
	t.Helper()
	var out []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("reading a line after %q: %v", out, err)
		}
		if b[0] == '\n' {
			return string(out)
		}
		out = append(out, b[0])
	}
}

// eventually waits up to 5 s for something to become true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 5 s it is still not true that %s", what)
		}
	}
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }
