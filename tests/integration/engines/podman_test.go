package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/console"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// podman is a podman with a storage of its own.
type podman struct {
	command
	flags []string // of every container
}

func newPodman(t *testing.T) podman {
	t.Helper()
	dir, parent := tempDir(t), cgroupParent(t)
	p := podman{command: command{need(t, "podman"), "--root", dir + "/storage", "--runroot", dir + "/run", "--tmpdir", dir + "/libpod",
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", built.runtime}}
	// Hard limits cannot be raised on a machine without CAP_SYS_RESOURCE; nor can flags say so for a pod's own container.
	config := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(config, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_CONF", config)
	p.flags = []string{"--network", "none", "--cgroup-parent", parent, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	t.Cleanup(func() {
		p.run(t, "rm", "--all", "--force", "--time", "0")
		p.run(t, "pod", "rm", "--all", "--force", "--time", "0")
	})
	p.must(t, "load", "-q", "-i", archive(t, built.python))
	return p
}

// args is `podman run` or `podman create` with the flags of every container.
func (p podman) args(verb string, flags []string, script string) []string {
	all := append([]string{verb}, p.flags...)
	all = append(append(all, flags...), "--entrypoint", `["/usr/bin/python3","-I","-S","-c"]`, pythonImage)
	return append(all, script)
}

func TestPodman(t *testing.T) {
	leakcheck.Check(t)
	p := newPodman(t)
	t.Run("exit codes", p.exitCodes)
	t.Run("stdin and terminal", p.terminal)
	t.Run("detached", p.detached)
	t.Run("healthcheck", p.healthcheck)
	t.Run("pod", p.pod)
	t.Run("policy", p.policy)
	t.Run("policy of a running container", p.policyHolds)
	t.Run("installed", p.installed)
	t.Run("policies of the machine", p.machine)
}

func (p podman) exitCodes(t *testing.T) {
	p.run(t, p.args("run", []string{"--rm"}, "print(6 * 7)")...).expect(t, 0, "42\n")
	p.run(t, p.args("run", []string{"--rm"}, "raise SystemExit(7)")...).expect(t, 7, "")
	for file, code := range map[string]int{"/no/such/file": 127, "/etc/passwd": 126} {
		args := append(append([]string{"run", "--rm"}, p.flags...), "--entrypoint", file, pythonImage)
		if got := p.run(t, args...); got.code != code || !strings.Contains(got.stderr, file) {
			t.Errorf("entrypoint %s: exit %d, stderr %q: want %d and the name", file, got.code, got.stderr, code)
		}
	}
	if left := p.must(t, "ps", "--all", "--quiet"); left != "" {
		t.Errorf("--rm left containers: %q", left)
	}
}

func (p podman) terminal(t *testing.T) {
	got := p.feed(t, "six times seven\n", p.args("run", []string{"--rm", "-i"}, "print(input().upper())")...)
	got.expect(t, 0, "SIX TIMES SEVEN\n")

	ours, slave, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := ours.Resize(console.WinSize{Width: 101, Height: 37}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(slave, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	// The size comes after the start: a terminal of engines is resized, not made in its size.
	script := "import os, sys, time\nend = time.time() + 20\nwhile os.get_terminal_size().columns != 101 and time.time() < end: time.sleep(.05)\nprint(os.isatty(0), tuple(os.get_terminal_size()), input()[::-1])"
	cmd := exec.Command(p.command[0], append(p.command[1:], p.args("run", []string{"--rm", "-it"}, script)...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte("olleh\n")); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); tty.Close() }()
	var screen strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(screen.String(), "(101, 37) hello") {
		n, err := ours.Read(buffer)
		screen.Write(buffer[:n])
		if err != nil {
			break
		}
	}
	if err := <-ended; err != nil || !strings.Contains(screen.String(), "True (101, 37) hello") {
		t.Errorf("podman run -it: %v, the screen says %q", err, screen.String())
	}
}

func (p podman) detached(t *testing.T) {
	script := "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nsignal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))\nprint('up', flush=True)\nwhile True: time.sleep(1)"
	id := p.must(t, p.args("run", []string{"-d", "--memory", "128m"}, script)...)
	waitFor(t, "the container's first line", func() bool { return strings.Contains(p.must(t, "logs", id), "up") })

	exec := append([]string{"exec", id}, python("import sys; print('inside'); sys.exit(3)")...)
	p.run(t, exec...).expect(t, 3, "inside\n")
	exec = append([]string{"exec", "-t", id}, python("import os; print(os.isatty(1))")...)
	p.run(t, exec...).expect(t, 0, "True")
	p.run(t, "exec", id, "/no/such/file").expect(t, 127, "")

	p.must(t, "pause", id)
	if status := p.must(t, "inspect", "--format", "{{.State.Status}}", id); status != "paused" {
		t.Errorf("after pause: status %q", status)
	}
	p.must(t, "unpause", id)

	p.must(t, "update", "--memory", "200m", id)
	limit := append([]string{"exec", id}, python(memoryLimit)...)
	p.run(t, limit...).expect(t, 0, "209715200")
	if top := p.must(t, "top", id, "pid", "comm"); !strings.Contains(top, "python3") {
		t.Errorf("podman top: %q", top)
	}
	if stats := p.must(t, "stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", id); !strings.HasPrefix(stats, "1 ") {
		t.Errorf("podman stats: %q", stats)
	}
	p.must(t, "kill", "--signal", "USR1", id)
	waitFor(t, "the signal to arrive", func() bool { return strings.Contains(p.must(t, "logs", id), "usr1") })
	p.must(t, "stop", "--time", "20", id)
	if state := p.must(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.OCIRuntime}}", id); state != "exited 5 "+built.runtime {
		t.Errorf("after stop: %q", state)
	}
	p.must(t, "rm", id)
}

func (p podman) healthcheck(t *testing.T) {
	check := `["/usr/bin/python3", "-I", "-S", "-c", "import os, sys; sys.exit(not os.path.exists('/tmp/healthy'))"]`
	id := p.must(t, p.args("run", []string{"-d", "--tmpfs", "/tmp", "--health-cmd", check, "--health-interval", "disable"}, "import time; time.sleep(600)")...)
	if got := p.run(t, "healthcheck", "run", id); got.code != 1 {
		t.Errorf("an unhealthy container: exit %d, stderr %q", got.code, got.stderr)
	}
	p.must(t, append([]string{"exec", id}, python("open('/tmp/healthy', 'w')")...)...)
	if got := p.run(t, "healthcheck", "run", id); got.code != 0 {
		t.Errorf("a healthy container: exit %d, stderr %q", got.code, got.stderr)
	}
	p.must(t, "rm", "--force", "--time", "0", id)
}

// Two containers of a pod share its network: one speaks, the other answers.
func (p podman) pod(t *testing.T) {
	p.must(t, "load", "-q", "-i", archive(t, built.pause))
	parent := p.flags[3]
	pod := p.must(t, "pod", "create", "--network", "none", "--cgroup-parent", parent, "--infra-image", pauseImage, "--infra-command", "/pause", "--share", "net,ipc,uts", "--name", "two")
	flags := []string{"--pod", pod, "--cgroup-parent", parent, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
		"--entrypoint", `["/usr/bin/python3","-I","-S","-c"]`, pythonImage}
	server := "import socket\ns = socket.create_server(('127.0.0.1', 8080))\nc, _ = s.accept()\nc.sendall(b'hello from the other container')\nc.close()\n"
	client := "import socket, time\nend = time.time() + 20\nwhile True:\n    try:\n        print(socket.create_connection(('127.0.0.1', 8080)).makefile().read())\n        break\n    except ConnectionRefusedError:\n        if time.time() > end: raise\n        time.sleep(.05)\n"
	p.must(t, append(append([]string{"run", "-d"}, flags...), server)...)
	p.run(t, append(append([]string{"run", "--rm"}, flags...), client)...).expect(t, 0, "hello from the other container")
	if count := p.must(t, "pod", "ps", "--format", "{{.NumberOfContainers}}"); count != "2" {
		t.Errorf("the pod has %s containers, want the infra container and the server", count)
	}
	p.must(t, "pod", "stop", "--time", "5", pod)
	p.must(t, "pod", "rm", pod)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + parent + "/*/libpod-*"); len(left) > 0 {
		t.Errorf("cgroups were left behind: %v", left)
	}
}

// policy: an annotation narrows a container of any image, or the container does not start.
func (p podman) policy(t *testing.T) {
	run := func(annotation, script string, flags ...string) result {
		return p.run(t, p.args("run", append([]string{"--rm", "--annotation", "io.psi.policy=" + annotation}, flags...), script)...)
	}
	run("compute-only", connect).expect(t, 0, "PermissionError")
	run("mem: 64MiB", memoryLimit, "--memory", "128m").expect(t, 0, "67108864")
	run("mem: 64MiB", memoryLimit, "--memory", "32m").expect(t, 0, "33554432")
	threads := "import threading, time\ntry:\n    for _ in range(50): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\nexcept RuntimeError:\n    print('held', flush=True)\nimport os\nos._exit(0)"
	run("pids: 8", threads).expect(t, 0, "held")
	// The fewest open files that a policy may say are enough for what puts the container together, with a terminal and volumes.
	volume := tempDir(t)
	fewest := p.must(t, p.args("run", []string{"-d", "-t", "-v", volume + ":/a", "--annotation", fmt.Sprintf(`"io.psi.policy={open_files: 20, imports: [decimal, socket, resource], fs: [{write: %s}, {write: /a}]}"`, volume)},
		"import decimal, socket, resource\nopen('/a/x', 'w').close()\nprint(resource.getrlimit(resource.RLIMIT_NOFILE))")...)
	if code, said := p.must(t, "wait", fewest), p.must(t, "logs", fewest); code != "0" || said != "(20, 20)" {
		t.Errorf("with the fewest open files: exit %s, it says %q", code, said)
	}
	p.must(t, "rm", fewest)
	for annotation, names := range map[string]string{
		"no-such-policy": "no-such-policy",
		"mem: -1":        "io.psi.policy",
	} {
		if got := run(annotation, "print('ran')"); got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, names) {
			t.Errorf("policy %s: exit %d, stdout %q, stderr %q: want an error that names %s", annotation, got.code, got.stdout, got.stderr, names)
		}
	}
}

// policyHolds: processes that come later are held too, an update cannot widen, and the state says so.
func (p podman) policyHolds(t *testing.T) {
	id := p.must(t, p.args("run", []string{"-d", "--annotation", "io.psi.policy=mem: 64MiB"}, "import time; time.sleep(600)")...)
	p.run(t, append([]string{"exec", id}, python(connect)...)...).expect(t, 0, "PermissionError")
	p.run(t, "update", "--memory", "200m", id)
	p.run(t, append([]string{"exec", id}, python(memoryLimit)...)...).expect(t, 0, "67108864")
	if state := (command{built.runtime}).must(t, "state", id); !strings.Contains(state, "sha256:") || !strings.Contains(state, "memory") {
		t.Errorf("state does not say the policy and how it is held: %s", state)
	}
	p.must(t, "rm", "--force", "--time", "0", id)
}

// installed: what `psi-runtime install` writes is what podman reads.
func (p podman) installed(t *testing.T) {
	file := filepath.Join(tempDir(t), "psi.conf")
	command{built.runtime}.must(t, "install", "--podman", "--file", file, "--runtime", built.runtime)
	t.Setenv("CONTAINERS_CONF", file)
	other := p
	other.command = append(append(command{}, p.command[:len(p.command)-2]...), "--runtime", "psi")
	other.run(t, other.args("run", []string{"--rm"}, "print(6 * 7)")...).expect(t, 0, "42\n")
	// One line of JSON from the runtime becomes podman's own error.
	args := append(append([]string{"run", "--rm"}, p.flags...), "--entrypoint", "/no/such/file", pythonImage)
	if got := other.run(t, args...); got.code != 127 || strings.Contains(got.stderr, "level=error") {
		t.Errorf("a missing program: exit %d, stderr %q: want 127 and no raw log line", got.code, got.stderr)
	}
}

// machine: /etc/psi says what holds, at the places where psi-runtime looks by itself: a class has a
// mandatory policy, under the name that the engine calls, and an annotation names a policy's file.
func (p podman) machine(t *testing.T) {
	const etc = "/etc/psi"
	if err := os.Mkdir(etc, 0o755); err == nil {
		t.Cleanup(func() { os.Remove(etc) })
	} else if !os.IsExist(err) {
		t.Fatal(err)
	}
	dir := tempDir(t)
	files := map[string]string{
		"etc/runtime.toml":                "[class.psi-strict]\npolicy = \"machine-strict\"\nmandatory = true\n",
		"etc/policies/machine-strict.yml": "mem: 64MiB\n",
		"etc/policies/machine-narrow.yml": "mem: 32MiB\n",
		"etc/policies/machine-wide.yml":   "mem: 64MiB\ntcp: [\"127.0.0.1:9\"]\n",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	class := filepath.Join(dir, "psi-strict")
	if err := os.Symlink(built.runtime, class); err != nil {
		t.Fatal(err)
	}
	// Each call sees files of the test's own there, and nobody else does.
	private := command{"unshare", "--mount", "sh", "-c", `mount -t tmpfs tmpfs ` + etc + ` && cp -r "$0/etc/." ` + etc + ` && exec "$@"`, dir}
	run := func(runtime, annotation string) result {
		other := p
		other.command = append(append(append(command{}, private...), p.command[:len(p.command)-1]...), runtime)
		flags := []string{"--rm", "--memory", "128m"}
		if annotation != "" {
			flags = append(flags, "--annotation", "io.psi.policy="+annotation)
		}
		return other.run(t, other.args("run", flags, memoryLimit+"\n"+connect)...)
	}
	for _, test := range []struct{ runtime, annotation, says string }{
		{built.runtime, "", "134217728 ConnectionRefusedError"},
		{built.runtime, "machine-narrow", "33554432 PermissionError"},
		{built.runtime, "machine-wide", "67108864 ConnectionRefusedError"},
		{class, "", "67108864 PermissionError"},
		{class, "machine-narrow", "33554432 PermissionError"},
	} {
		if got := run(test.runtime, test.annotation); strings.Join(strings.Fields(got.stdout), " ") != test.says {
			t.Errorf("%s, annotation %q: exit %d, %q, %q, want %q", filepath.Base(test.runtime), test.annotation, got.code, got.stdout, got.stderr, test.says)
		}
	}
	for annotation, names := range map[string]string{"machine-wide": "127.0.0.1:9", "compute-only": "64MiB → 128MiB"} {
		if got := run(class, annotation); got.code == 0 || got.stdout != "" || !strings.Contains(got.stderr, names) {
			t.Errorf("%s is wider than the mandatory policy: exit %d, %q, %q: want an error that names %s", annotation, got.code, got.stdout, got.stderr, names)
		}
	}
}
