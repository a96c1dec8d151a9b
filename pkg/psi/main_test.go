package psi

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// The clients of these tests start the built psi-shim, with guests in the built root file
// system; PSI_SHIM and PSI_ROOTFS name others.
func TestMain(m *testing.M) {
	for variable, built := range map[string]string{"PSI_SHIM": "../../bin/psi-shim", "PSI_ROOTFS": "../../build/rootfs"} {
		path := os.Getenv(variable)
		if path == "" {
			path = built
		}
		path, err := filepath.Abs(path)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			fmt.Println("the tests need the built programs and root file system: run `make rootfs`:", err)
			os.Exit(1)
		}
		os.Setenv(variable, path)
	}
	os.Exit(m.Run())
}

// scaled stretches a time for machines that are emulated.
func scaled(d time.Duration) time.Duration {
	if os.Getenv("PSI_TEST_VM") != "" {
		return 20 * d
	}
	return d
}

// within is a context for one wait.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), scaled(d))
	t.Cleanup(cancel)
	return ctx
}

// soon is longer than anything here should take.
func soon(t *testing.T) context.Context { t.Helper(); return within(t, 20*time.Second) }

// open starts a client, which must leave nothing behind: on the host, and no goroutine.
func open(t *testing.T) *Client {
	t.Helper()
	leakcheck.Check(t)
	t.Cleanup(func() { noGoroutines(t) })
	c, err := Open(soon(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing the client: %v", err)
		}
	})
	return c
}

// noGoroutines waits until none of this package's goroutines runs.
func noGoroutines(t *testing.T) {
	t.Helper()
	var left string
	for range 100 {
		buf := make([]byte, 1<<20)
		left = ""
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "created by github.com/psi-runtime/psi/pkg/psi.") && !strings.Contains(stack, "_test.go") {
				left += stack + "\n\n"
			}
		}
		if left == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("goroutines are left:\n%s", left)
}

// spawn makes a guest, with a policy document or the default.
func spawn(t *testing.T, c *Client, document string) *Sandbox {
	t.Helper()
	o := SpawnOptions{}
	if document != "" {
		o.Policy = Document(document)
	}
	sb, err := c.Spawn(soon(t), fmt.Sprintf("go-%d", time.Now().UnixNano()), o)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func run(t *testing.T, sb *Sandbox, source string) {
	t.Helper()
	if err := sb.Exec(soon(t), source); err != nil {
		t.Fatal(err)
	}
}

func recv(t *testing.T, sb *Sandbox) any {
	t.Helper()
	v, err := sb.Recv(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func works(t *testing.T, sb *Sandbox) {
	t.Helper()
	if v, err := sb.Call(soon(t), "abs", -7); err != nil || v != int64(7) {
		t.Errorf("abs(-7) is %v, %v", v, err)
	}
}

// endOf is the error that ends a guest; exceptions of its code are passed over.
func endOf(t *testing.T, sb *Sandbox) *SandboxError {
	t.Helper()
	for {
		_, err := sb.Recv(soon(t))
		var end *SandboxError
		switch {
		case err == nil || asGuest(err):
			continue
		case isTimeout(err) || !asSandbox(err, &end):
			t.Fatalf("the guest has not ended: %v", err)
		}
		return end
	}
}
