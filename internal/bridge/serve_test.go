package bridge

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
	"github.com/psi-runtime/psi/pkg/psi"
)

// shim is the built program: it must be another process, whose parent is the client.
func shim(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PSI_SHIM")
	if path == "" {
		path = "../../bin/psi-shim"
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

// The Go client with podman behind it: the same calls, the same types of error.
func TestServeGivesTheSameSandbox(t *testing.T) {
	words := runCommand(t)
	leakcheck.Check(t)
	ctx := t.Context()
	client, err := psi.Open(ctx, psi.Options{Engine: words, Shim: shim(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	events := client.Events(ctx)
	sb, err := client.Spawn(ctx, "pod", psi.SpawnOptions{Policy: psi.Document("mem: 64MiB"), AllowedImports: []string{"math"}})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := sb.Call(ctx, "math.hypot", 3, 4); err != nil || v != 5.0 {
		t.Errorf("hypot is %v, %v", v, err)
	}
	if s, err := sb.Stats(ctx); err != nil || s.CPU < time.Millisecond || s.Mem < 1<<20 || s.Mem > 64<<20 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if _, err := client.Spawn(ctx, "pod", psi.SpawnOptions{}); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("a second guest of that name: %v", err)
	}
	if err := sb.Exec(ctx, "x = bytearray(200 << 20)"); err != nil {
		t.Fatal(err)
	}
	var memory *psi.MemoryExceeded
	if _, err := sb.Recv(ctx); !errors.As(err, &memory) {
		t.Errorf("memory: %v", err)
	}
	if e := <-events; e.Type != psi.MemKill || e.Sandbox != sb {
		t.Errorf("event %+v", e)
	}
	var wrong *psi.PolicyError
	if _, err := client.Spawn(ctx, "pod", psi.SpawnOptions{Policy: psi.Document(`tcp: ["127.0.0.1:80"]`)}); !errors.As(err, &wrong) {
		t.Errorf("an endpoint: %v", err)
	}
	left, err := client.Spawn(ctx, "left", psi.SpawnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client.Close() // takes it along
	var end *psi.SandboxError
	if err := left.Err(); !errors.As(err, &end) {
		t.Errorf("a guest of a client that has closed: %v", err)
	}
	nothingRuns(t)
}

func TestServeSaysWhyThereIsNoBridge(t *testing.T) {
	leakcheck.Check(t)
	_, err := psi.Open(t.Context(), psi.Options{Engine: []string{"podman", "run", "image"}, Shim: shim(t)})
	if !errors.Is(err, psi.ErrSandbox) || !strings.Contains(err.Error(), "without -i") {
		t.Errorf("podman run without -i: %v", err)
	}
}
