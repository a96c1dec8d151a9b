package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/policy"
)

// daemonConfig gives containers a policy by the runtime's name: this docker has no --annotation.
const daemonConfig = `{"runtimes": {"psi-compute-only": {"path": %q, "runtimeArgs": ["--policy", "compute-only"]}}}`

// newDocker starts a dockerd with runc and psi-runtime, and imports the root file system.
func newDocker(t *testing.T) command {
	t.Helper()
	need(t, "dockerd")
	dir, parent := tempDir(t), cgroupParent(t)
	t.Cleanup(func() { removeGroups("/docker") }) // dockerd makes it, whatever the parent
	socket := "unix://" + dir + "/docker.sock"
	config := dir + "/daemon.json"
	if err := os.WriteFile(config, fmt.Appendf(nil, daemonConfig, built.runtime), 0o644); err != nil {
		t.Fatal(err)
	}
	command{built.runtime}.must(t, "install", "--docker", "--file", config, "--runtime", built.runtime)
	args := []string{"--config-file", config, "--data-root", dir + "/data", "--exec-root", dir + "/exec", "-H", socket, "--pidfile", dir + "/pid",
		"--iptables=false", "--bridge=none", "--storage-driver", "vfs", "--cgroup-parent", parent}
	docker := command{"/usr/bin/docker", "--config", dir, "-H", socket}
	daemon(t, exec.Command("dockerd", args...), func() bool { return docker.run(t, "version").code == 0 })
	t.Cleanup(func() {
		if ids := strings.Fields(docker.run(t, "ps", "--all", "--quiet").stdout); len(ids) > 0 {
			docker.run(t, append([]string{"rm", "--force"}, ids...)...)
		}
	})
	pack := exec.Command("sh", "-c", `tar -C "$1" -c . | "$2" -H "$3" import - `+pythonImage, "sh", rootfs(t), docker[0], socket)
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	return docker
}

// rootfs is the built root file system as a directory.
func rootfs(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PSI_ROOTFS")
	if path == "" {
		path = "../../../build/rootfs"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDocker(t *testing.T) {
	watched(t)
	docker := newDocker(t)
	t.Run("exit codes", docker.exitCodes)
	t.Run("detached", docker.detached)
	t.Run("policy", docker.policy)
}

// policy: what a named runtime's policy forbids, a container of any image cannot do.
func (docker command) policy(t *testing.T) {
	for runtime, want := range map[string]string{"psi": "ConnectionRefusedError", "psi-compute-only": "PermissionError"} {
		args := append([]string{"run", "--rm", "--network", "none", "--runtime", runtime, pythonImage}, python(connect)...)
		docker.run(t, args...).expect(t, 0, want)
	}
	id := docker.must(t, append([]string{"run", "-d", "--network", "none", "--runtime", "psi-compute-only", "--memory", "100m", pythonImage}, python("import time; time.sleep(600)")...)...)
	limited, err := policy.Named("compute-only")
	if err != nil {
		t.Fatal(err)
	}
	limits := limited.Limits()
	limits.Mem = 32 << 20
	smaller, err := limited.WithLimits(limits)
	if err != nil {
		t.Fatal(err)
	}
	memory := func(want string) {
		t.Helper()
		docker.run(t, append([]string{"exec", id}, python(memoryLimit)...)...).expect(t, 0, want+"\n")
	}
	applyPolicy(t, id, string(smaller.Canonical())).expect(t, 0, "")
	memory("33554432")
	// The policy of a runtime's name is the most that one of its containers can be given.
	if got := applyPolicy(t, id, "{}"); got.code != 1 || !strings.Contains(got.stderr, "what --policy compute-only does not") {
		t.Errorf("%+v", got)
	}
	docker.must(t, "update", "--memory", "50m", "--memory-swap", "50m", id)
	memory("33554432")
	applyPolicy(t, id, string(limited.Canonical())).expect(t, 0, "")
	memory("52428800")
	docker.must(t, "rm", "--force", id)
}

func (docker command) exitCodes(t *testing.T) {
	run := []string{"run", "--rm", "--network", "none", "--runtime", "psi"}
	script := func(s string) []string { return append(append(run, pythonImage), python(s)...) }
	docker.run(t, script("print(6 * 7)")...).expect(t, 0, "42\n")
	docker.run(t, script("raise SystemExit(7)")...).expect(t, 7, "")
	got := docker.feed(t, "six times seven\n", append(append(run, "-i", pythonImage), python("print(input().upper())")...)...)
	got.expect(t, 0, "SIX TIMES SEVEN\n")
	docker.run(t, append(append(run, "-t", pythonImage), python("import os; print(os.isatty(0))")...)...).expect(t, 0, "True")
	// With --init, docker's own init is pid 1.
	docker.run(t, append(append(run, "--init", pythonImage), python("import os; print(os.getpid() > 1)")...)...).expect(t, 0, "True")
	for file, code := range map[string]int{"/no/such/file": 127, "/etc/passwd": 126} {
		if got := docker.run(t, append(run, pythonImage, file)...); got.code != code || !strings.Contains(got.stderr, file) {
			t.Errorf("command %s: exit %d, stderr %q: want %d and the name", file, got.code, got.stderr, code)
		}
	}
	if left := docker.must(t, "ps", "--all", "--quiet"); left != "" {
		t.Errorf("--rm left containers: %q", left)
	}
}

func (docker command) detached(t *testing.T) {
	script := "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('up', flush=True)\nwhile True: time.sleep(1)"
	id := docker.must(t, append([]string{"run", "-d", "--network", "none", "--runtime", "psi", "--memory", "100m", pythonImage}, python(script)...)...)
	waitFor(t, "the container's first line", func() bool { return strings.Contains(docker.must(t, "logs", id), "up") })
	if got := docker.must(t, "inspect", "-f", "{{.State.Status}} {{.HostConfig.Runtime}}", id); got != "running psi" {
		t.Errorf("inspect says %q", got)
	}
	docker.run(t, append([]string{"exec", id}, python("import sys; print('inside'); sys.exit(3)")...)...).expect(t, 3, "inside\n")
	docker.run(t, append([]string{"exec", "-t", id}, python("import os; print(os.isatty(1))")...)...).expect(t, 0, "True")

	if stats := docker.must(t, "stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", id); !strings.HasSuffix(stats, "/ 100MiB 1") {
		t.Errorf("stats says %q", stats)
	}
	docker.must(t, "update", "--memory", "200m", "--memory-swap", "200m", "--pids-limit", "33", id)
	if stats := docker.must(t, "stats", "--no-stream", "--format", "{{.MemUsage}}", id); !strings.HasSuffix(stats, "/ 200MiB") {
		t.Errorf("after update, stats says %q", stats)
	}
	docker.must(t, "pause", id)
	if status := docker.must(t, "ps", "--format", "{{.Status}}"); !strings.Contains(status, "Paused") {
		t.Errorf("after pause: status %q", status)
	}
	docker.must(t, "unpause", id)
	if top := docker.must(t, "top", id); !strings.Contains(top, "python3") {
		t.Errorf("top says %q", top)
	}
	docker.must(t, "stop", "-t", "20", id)
	if state := docker.must(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", id); state != "exited 5" {
		t.Errorf("after stop: %q", state)
	}
	docker.must(t, "rm", id)
}
