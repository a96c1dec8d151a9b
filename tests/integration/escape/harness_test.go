package escape

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// found returns the absolute path of something built, which an environment variable may name.
func found(t *testing.T, variable, path, make string) string {
	t.Helper()
	if named := os.Getenv(variable); named != "" {
		path = named
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the tests need what `make %s` builds: %v", make, err)
	}
	return path
}

func program(t *testing.T) string {
	return found(t, "PSI_RUNTIME", "../../../bin/psi-runtime", "build")
}
func shim(t *testing.T) string { return found(t, "PSI_SHIM", "../../../bin/psi-shim", "build") }
func rootfs(t *testing.T) string {
	return found(t, "PSI_ROOTFS", "../../../build/rootfs", "rootfs")
}

// result is what a finished command left.
type result struct {
	code           int
	stdout, stderr string
}

// invoke runs a command to its end, with a limit that suits the slow kernel too.
func invoke(t *testing.T, name string, args ...string) result {
	t.Helper()
	return invokeWith(t, func(*exec.Cmd) {}, name, args...)
}

// invokeWith lets the caller change the command first.
func invokeWith(t *testing.T, change func(*exec.Cmd), name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	change(cmd)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// run runs a bundle with psi-runtime under an id of its own.
func run(t *testing.T, bundle string) result {
	t.Helper()
	return runWith(t, bundle, func(*exec.Cmd) {})
}

// runWith lets the caller change the command first, and adds flags.
func runWith(t *testing.T, bundle string, change func(*exec.Cmd), flags ...string) result {
	t.Helper()
	id := newID()
	t.Cleanup(func() { exec.Command(program(t), "delete", "--force", id).Run() })
	args := append(append([]string{"run"}, flags...), "--bundle", bundle, id)
	return invokeWith(t, change, program(t), args...)
}

// newID returns a container id that no other test uses.
func newID() string { return "psi-escape-" + strings.ToLower(rand.Text()[:10]) }

// publicDir makes a directory that a guest's own host user can reach; t.TempDir is 0700.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "psi-escape-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// write makes a file of the given mode, whatever the umask, and the directories above it.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// config is the config.json of a bundle, to be edited.
type config map[string]any

// at returns the object at the keys, made if it is missing.
func (c config) at(keys ...string) config {
	for _, key := range keys {
		next, ok := c[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			c[key] = next
		}
		c = next
	}
	return c
}

// edit changes the config.json of a bundle.
func edit(t *testing.T, bundle string, change func(config)) {
	t.Helper()
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c config
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // masks of the filter have 64 bits
	if err := decoder.Decode(&c); err != nil {
		t.Fatal(err)
	}
	change(c)
	if data, err = json.MarshalIndent(c, "", "\t"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// compile makes a bundle that runs a Python source under a policy document, with arguments.
func compile(t *testing.T, policy, source string, args ...string) string {
	t.Helper()
	dir := publicDir(t)
	file, script, bundle := filepath.Join(dir, "policy.yml"), filepath.Join(dir, "script.py"), filepath.Join(dir, "bundle")
	write(t, file, policy, 0o644)
	write(t, script, source, 0o644)
	got := invoke(t, program(t), "bundle", "--policy", file, "--rootfs", rootfs(t), "--entry", script, "-o", bundle)
	if got.code != 0 {
		t.Fatalf("compiling the bundle: exit %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	edit(t, bundle, func(c config) {
		process := c.at("process")
		for _, arg := range args {
			process["args"] = append(process["args"].([]any), arg)
		}
	})
	return bundle
}

// script returns the source of an attempt script, its library in front.
func script(t *testing.T, name string) string {
	t.Helper()
	library, err := os.ReadFile("testdata/lib.py")
	if err != nil {
		t.Fatal(err)
	}
	attempts, err := os.ReadFile(filepath.Join("testdata/attempts", name+".py")) // "../name" is one beside them
	if err != nil {
		t.Fatal(err)
	}
	return string(library) + "\n\n" + string(attempts)
}

// watched starts the leak check of a test.
func watched(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests run containers: run them as root")
	}
	leakcheck.Check(t)
}

func itoa(n int) string { return strconv.Itoa(n) }
