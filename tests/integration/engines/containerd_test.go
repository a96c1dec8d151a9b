package engines

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// watched starts the leak check of a test.
func watched(t *testing.T) {
	t.Helper()
	leakcheck.Check(t)
}

// containerd is a daemon in a network namespace of its own: its pods' interfaces and addresses go
// with it, and nothing of them is on the machine's network.
type containerd struct {
	pid  int
	dir  string
	sock string
}

// containerdConfig has the runtime classes runc and psi, for CRI.
const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
address = "%[1]s/sock"
[ttrpc]
address = "%[1]s/ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + pauseImage + `"
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "%[1]s/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`

// cniConfig gives each pod a pair of interfaces to the daemon's own network namespace.
const cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.254.0.0/24"}]]}}
]}
`

func newContainerd(t *testing.T) *containerd {
	t.Helper()
	program := need(t, "containerd")
	dir := tempDir(t)
	c := &containerd{dir: dir, sock: dir + "/sock"}
	for _, sub := range []string{"cni"} {
		if err := os.Mkdir(dir+"/"+sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"config.toml":       fmt.Sprintf(containerdConfig, dir),
		"cni/pods.conflist": fmt.Sprintf(cniConfig, dir+"/ipam"),
	}
	for name, text := range files {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The class psi is what `psi-runtime install` writes.
	command{built.runtime}.must(t, "install", "--containerd", "--file", dir+"/config.toml", "--runtime", built.runtime)
	cmd := exec.Command("sh", "-c", `ip link set lo up && exec "$0" --config "$1"`, program, dir+"/config.toml")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	c.pid = daemon(t, cmd, func() bool { return c.ctr().run(t, "version").code == 0 }).Pid
	return c
}

// ctr is ctr for this daemon.
func (c *containerd) ctr() command { return command{"ctr", "--address", c.sock} }

func TestContainerd(t *testing.T) {
	watched(t)
	t.Cleanup(func() { removeGroups("/default") })
	c := newContainerd(t)
	ctr := c.ctr()
	ctr.must(t, "image", "import", "--snapshotter", "native", archive(t, built.python))
	flags := []string{"run", "--snapshotter", "native", "--runtime", "io.containerd.runc.v2", "--runc-binary", built.runtime}
	run := func(id, script string, more ...string) []string {
		return append(append(append(append([]string{}, flags...), more...), pythonImage, id), python(script)...)
	}
	t.Run("run", func(t *testing.T) {
		ctr.run(t, run("one", "print(6 * 7)", "--rm")...).expect(t, 0, "42\n")
		ctr.run(t, run("seven", "raise SystemExit(7)", "--rm")...).expect(t, 7, "")
		if got := ctr.run(t, append(append([]string{}, flags...), "--rm", pythonImage, "none", "/no/such/file")...); got.code == 0 || !strings.Contains(got.stderr, "no such file or directory") {
			t.Errorf("a missing program: exit %d, stderr %q", got.code, got.stderr)
		}
		if left := ctr.must(t, "containers", "ls", "-q"); left != "none" && left != "" {
			t.Errorf("--rm left containers: %q", left)
		}
		ctr.run(t, "containers", "delete", "none") // ctr 1.6 leaves what could not be started
	})
	t.Run("tasks", func(t *testing.T) {
		ctr.must(t, run("long", "import time\nwhile True: time.sleep(1)", "-d")...)
		tasks := func() string { return strings.Join(strings.Fields(ctr.must(t, "tasks", "ls")), " ") }
		if got := tasks(); !strings.HasSuffix(got, "RUNNING") {
			t.Errorf("tasks ls says %q", got)
		}
		ctr.run(t, append([]string{"tasks", "exec", "--exec-id", "e", "long"}, python("import sys; print('inside'); sys.exit(3)")...)...).expect(t, 3, "inside\n")
		ctr.must(t, "tasks", "pause", "long")
		if got := tasks(); !strings.HasSuffix(got, "PAUSED") {
			t.Errorf("after pause, tasks ls says %q", got)
		}
		ctr.must(t, "tasks", "resume", "long")
		if got := ctr.must(t, "tasks", "ps", "long"); len(strings.Split(got, "\n")) != 2 {
			t.Errorf("tasks ps says %q, want a header and one process", got)
		}
		ctr.must(t, "tasks", "kill", "--signal", "SIGKILL", "long")
		waitFor(t, "the task to stop", func() bool { return strings.HasSuffix(tasks(), "STOPPED") })
		ctr.run(t, "tasks", "delete", "long").expect(t, 0, "") // its exit code is only warned of
		ctr.must(t, "containers", "delete", "long")
	})
	t.Run("another policy", func(t *testing.T) {
		ctr.must(t, run("held", "import time; time.sleep(600)", "-d", "--memory-limit", "104857600", "--annotation", "io.psi.policy=mem: 64MiB")...)
		memory := func(want string) {
			t.Helper()
			if got := ctr.must(t, "tasks", "metrics", "held"); !slices.Contains(strings.Fields(got), want) {
				t.Errorf("%s: want a limit of %s", got, want)
			}
		}
		memory("67108864")
		applyPolicy(t, "held", "mem: 1GiB").expect(t, 0, "")
		memory("104857600")
		ctr.must(t, "tasks", "kill", "--signal", "SIGKILL", "held")
		waitFor(t, "the task to stop", func() bool { return strings.Contains(ctr.must(t, "tasks", "ls"), "STOPPED") })
		ctr.run(t, "tasks", "delete", "held")
		ctr.must(t, "containers", "delete", "held")
	})
}

// TestContainerdMetrics is apart because containerd has other names for the figures, and reads other
// files, with pure cgroup v2: it runs on the second kernel too, and what engines do most with it.
func TestContainerdMetrics(t *testing.T) {
	watched(t)
	t.Cleanup(func() { removeGroups("/default") })
	ctr := newContainerd(t).ctr()
	ctr.must(t, "image", "import", "--snapshotter", "native", archive(t, built.busybox))
	ctr.must(t, "run", "-d", "--snapshotter", "native", "--runc-binary", built.runtime, "--memory-limit", "104857600", "--annotation", "io.psi.policy=mem: 1GiB", busyboxImage, "m", "/bin/sh", "-c", "sleep 1000 & wait")
	metrics := map[string]string{}
	waitFor(t, "two processes in the figures", func() bool {
		for _, line := range strings.Split(ctr.must(t, "tasks", "metrics", "m"), "\n") {
			if fields := strings.Fields(line); len(fields) == 2 {
				metrics[fields[0]] = fields[1]
			}
		}
		return metrics["pids.current"] == "2"
	})
	limit, usage := metrics["memory.limit_in_bytes"], metrics["memory.usage_in_bytes"]
	if v2 := metrics["memory.usage_limit"]; v2 != "" {
		limit, usage = v2, metrics["memory.usage"]
	}
	if bytes, err := strconv.Atoi(usage); limit != "104857600" || err != nil || bytes <= 0 || bytes > 104857600 {
		t.Errorf("tasks metrics says %v", metrics)
	}
	ctr.run(t, "tasks", "exec", "--exec-id", "e", "m", "/bin/sh", "-c", "echo inside; nc 127.0.0.1 9 2>&1; exit 3").expect(t, 3, "not permitted")
	ctr.must(t, "tasks", "pause", "m")
	if got := strings.TrimSpace(ctr.must(t, "tasks", "ls")); !strings.HasSuffix(got, "PAUSED") {
		t.Errorf("after pause, tasks ls says %q", got)
	}
	ctr.must(t, "tasks", "resume", "m")
	ctr.must(t, "tasks", "kill", "--all", "--signal", "SIGKILL", "m")
	waitFor(t, "the task to stop", func() bool { return strings.HasSuffix(strings.TrimSpace(ctr.must(t, "tasks", "ls")), "STOPPED") })
	ctr.run(t, "tasks", "delete", "m").expect(t, 0, "")
	ctr.must(t, "containers", "delete", "m")
}
