package bridge

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/leakcheck"
	"github.com/psi-runtime/psi/pkg/psi"
)

// docker starts a daemon of the test's own, with a guest image in it, and returns the
// command that runs a guest.
func docker(t *testing.T) []string {
	t.Helper()
	daemon, err := exec.LookPath("dockerd")
	if err != nil {
		t.Fatal("dockerd is missing: run `make setup`")
	}
	dir, err := os.MkdirTemp("", "psi-docker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	config := filepath.Join(dir, "daemon.json") // this docker has no --annotation: a runtime's name stands for a policy
	runtimes := `{"runtimes": {"psi": {"path": %[1]q}, "psi-held": {"path": %[1]q, "runtimeArgs": ["--policy", "compute-only"]}}}`
	if err := os.WriteFile(config, fmt.Appendf(nil, runtimes, engine.runtime), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--host", "unix://"+dir+"/sock",
		"--pidfile", dir+"/pid", "--iptables=false", "--bridge=none", "--storage-driver", "vfs", "--config-file", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
	})
	client := []string{"docker", "--host", "unix://" + dir + "/sock"}
	ask := func(words ...string) error {
		return exec.Command(client[0], append(client[1:len(client):len(client)], words...)...).Run()
	}
	for deadline := time.Now().Add(30 * time.Second); ask("version") != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd does not answer: %s", said)
		}
	}
	archive := filepath.Join(dir, "root.tar")
	if err := exec.Command(engine.runtime, "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "tar", "--output", archive).Run(); err != nil {
		t.Fatal(err)
	}
	if err := ask("import", "--change", `ENTRYPOINT ["/usr/bin/python3.11","-I","-S","/usr/lib/psi/`+agentIn(t, archive)+`"]`, archive, "psi-python"); err != nil {
		t.Fatalf("docker import: %v", err)
	}
	return append(client, "run", "-i", "--rm", "--runtime", "psi", "--network", "none", "psi-python")
}

// agentIn is the name of the agent's program in a root.
func agentIn(t *testing.T, archive string) string {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatal("the root holds no agent")
		} else if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(header.Name); strings.Contains(header.Name, "usr/lib/psi/agent.py") {
			return name
		}
	}
}

func TestDocker(t *testing.T) {
	runCommand(t) // skips where there are no engines
	leakcheck.Check(t)
	words := docker(t)
	ctx := t.Context()
	client, err := psi.Open(ctx, psi.Options{Engine: words, Shim: shim(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var wrong *psi.PolicyError
	if _, err := client.Spawn(ctx, "guest", psi.SpawnOptions{Policy: psi.Named("defaults")}); !errors.As(err, &wrong) {
		t.Errorf("a policy that docker would not pass on: %v", err)
	}
	sb, err := client.Spawn(ctx, "guest", psi.SpawnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := sb.Call(ctx, "math.hypot", 3, 4); err != nil || v != 5.0 {
		t.Errorf("hypot is %v, %v", v, err)
	}
	if s, err := sb.Stats(ctx); err != nil || s.CPU < time.Millisecond || s.Mem < 1<<20 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if _, err := sb.Call(ctx, "os._exit", 9); err == nil || !strings.Contains(err.Error(), "exit code 9") {
		t.Errorf("exit: %v", err)
	}
	if sb, err = client.Spawn(ctx, "deaf", psi.SpawnOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := sb.Exec(ctx, deaf); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Recv(ctx); err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(ctx, psi.Grace); err != nil {
		t.Error(err)
	}
	client.Close()
	toldByDocker(t, words)
	list := exec.Command(words[0], words[1], words[2], "ps", "--all", "--quiet")
	if left, err := list.Output(); err != nil || len(left) > 0 {
		t.Errorf("containers are left: %s, %v", left, err)
	}
}

// toldByDocker: what the policy of docker's runtime refuses a guest, and what holds it back or
// kills it, is told as that of any guest.
func toldByDocker(t *testing.T, words []string) {
	t.Helper()
	ctx := t.Context()
	words = slices.Clone(words)
	words[slices.Index(words, "psi")] = "psi-held"
	words = slices.Insert(words, slices.Index(words, "run")+1, "--cpus=0.2", "--memory=64m", "--memory-swap=64m")
	client, err := psi.Open(ctx, psi.Options{Engine: words, Shim: shim(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	events := client.Events(ctx)
	var seen []psi.Event // that nobody has asked for yet: being held back may begin with the interpreter's start
	next := func(kind string) psi.Event {
		t.Helper()
		is := func(e psi.Event) bool { return e.Type == kind }
		for {
			if i := slices.IndexFunc(seen, is); i >= 0 {
				e := seen[i]
				seen = slices.Delete(seen, i, i+1)
				return e
			}
			select {
			case e := <-events:
				seen = append(seen, e)
			case <-time.After(10 * time.Second):
				t.Fatalf("no event %s", kind)
			}
		}
	}
	sb, err := client.Spawn(ctx, "held", psi.SpawnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Exec(ctx, "import socket\nwith socket.socket() as s:\n    s.connect(('127.0.0.1', 9))"); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Recv(ctx); err == nil || !strings.Contains(err.Error(), "PermissionError") {
		t.Errorf("a connection that the policy does not allow: %v", err)
	}
	if e := next(psi.Denied); e.Sandbox != sb || e.Details["address"] != "127.0.0.1:9" {
		t.Errorf("event %+v", e)
	}
	if err := sb.Exec(ctx, "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"); err != nil {
		t.Fatal(err)
	}
	if e := next(psi.CPUThrottle); e.Sandbox != sb || e.Details["reason"] != "quota" {
		t.Errorf("event %+v", e)
	}
	if err := sb.Exec(ctx, "x = bytearray(200 << 20)"); err != nil {
		t.Fatal(err)
	}
	var memory *psi.MemoryExceeded
	if _, err := sb.Recv(ctx); !errors.As(err, &memory) {
		t.Errorf("memory: %v", err)
	}
	if e := next(psi.MemKill); e.Sandbox != sb {
		t.Errorf("event %+v", e)
	}
}
