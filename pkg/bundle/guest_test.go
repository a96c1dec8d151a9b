package bundle_test

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
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
	"github.com/psi-runtime/psi/rootfs"
)

// Debian's interpreter and packages; the tests of other interpreters are those of rootfs.
const (
	python   = "/usr/bin/python3.11"
	packages = "/usr/lib/python3/dist-packages"
)

// TestMain makes the directory of what the tests share, and removes it. Every user
// can pass it: runc binds a root with the guest's own user.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "psi-bundle-test-")
		if err == nil {
			defer os.RemoveAll(dir)
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		shared.dir = dir
		return m.Run()
	}())
}

// shared is what all tests use: building a root filesystem takes seconds.
var shared struct {
	dir             string
	plain, numerics onceRoot
}

// onceRoot is a root filesystem that is built when it is first asked for.
type onceRoot struct {
	once sync.Once
	info bundle.RootfsInfo
	err  error
}

// root returns a real root filesystem with the standard library.
func root(t *testing.T) bundle.RootfsInfo {
	t.Helper()
	return shared.plain.get(t, "plain")
}

// numericsRoot returns one with numpy and pandas in it.
func numericsRoot(t *testing.T) bundle.RootfsInfo {
	t.Helper()
	return shared.numerics.get(t, "numerics", "numpy", "pandas", "dateutil", "pytz", "six.py")
}

func (r *onceRoot) get(t *testing.T, name string, modules ...string) bundle.RootfsInfo {
	t.Helper()
	r.once.Do(func() { r.info, r.err = buildRoot(name, modules) })
	if r.err != nil {
		t.Fatalf("building the root filesystem: %v", r.err)
	}
	return r.info
}

func buildRoot(name string, modules []string) (bundle.RootfsInfo, error) {
	options := rootfs.Options{Python: python, Output: filepath.Join(shared.dir, name), Format: "dir"}
	if len(modules) > 0 {
		site := filepath.Join(shared.dir, name+"-site")
		if err := os.Mkdir(site, 0o755); err != nil {
			return bundle.RootfsInfo{}, err
		}
		for _, module := range modules {
			if out, err := exec.Command("cp", "-a", filepath.Join(packages, module), site).CombinedOutput(); err != nil {
				return bundle.RootfsInfo{}, fmt.Errorf("copying %s (apt-get install python3-numpy python3-pandas): %w: %s", module, err, out)
			}
		}
		options.SitePackages = []string{site}
	}
	if _, err := rootfs.Build(context.Background(), options); err != nil {
		return bundle.RootfsInfo{}, err
	}
	return bundle.Inspect(options.Output)
}

// guest is a bundle that plain runc runs.
type guest struct {
	policy policy.Policy
	script string   // source of the script entry
	args   []string // of the script
	// numerics asks for the root with numpy and pandas.
	numerics bool
	// edit has the last word on the configuration: tests that need a part of the
	// bundle without another take it away here.
	edit func(spec *specs.Spec)
}

// result is how a guest ended.
type result struct {
	stdout, stderr string
	code           int
}

// run writes the bundle and runs it with Debian's runc, which knows nothing of psi.
func (g guest) run(t *testing.T) result {
	t.Helper()
	dir := g.write(t)
	return runc(t, dir)
}

// write makes the bundle below a directory that every user can pass.
func (g guest) write(t *testing.T) string {
	t.Helper()
	info := root(t)
	if g.numerics {
		info = numericsRoot(t)
	}
	top := openDir(t)
	script := filepath.Join(top, "script.py")
	if err := os.WriteFile(script, []byte(g.script), 0o600); err != nil {
		t.Fatal(err)
	}
	entry := bundle.Entry{Script: script, Args: g.args}
	view, err := bundle.PlanView(g.policy)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := bundle.Compile(g.policy, info, view, entry)
	if err != nil {
		t.Fatal(err)
	}
	if g.edit != nil {
		g.edit(spec)
	}
	dir := filepath.Join(top, "bundle")
	if err := bundle.Write(dir, spec, info, view, entry); err != nil {
		t.Fatal(err)
	}
	return dir
}

// openDir is t.TempDir, but one that every user can pass.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(shared.dir, "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func runc(t *testing.T, dir string) result {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests run containers with runc: run them as root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id := fmt.Sprintf("psi-bundle-%d-%d", os.Getpid(), time.Now().UnixNano())
	state := filepath.Join(shared.dir, "runc")
	cmd := exec.CommandContext(ctx, "runc", "--root", state, "run", "--bundle", dir, id)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		exec.Command("runc", "--root", state, "delete", "--force", id).Run()
		t.Fatalf("runc run did not end; so far:\n%s%s", stdout.String(), stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok fails the test unless the guest ended well, and returns what it wrote.
func (r result) ok(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("guest ended with %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}
