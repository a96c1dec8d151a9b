package engines

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// criTools builds crictl and critest, from the module of their own.
func criTools(t *testing.T) (crictl, critest string) {
	t.Helper()
	dir, err := filepath.Abs("../../../build/engines")
	if err != nil {
		t.Fatal(err)
	}
	crictl, critest = dir+"/crictl", dir+"/critest"
	const module = "sigs.k8s.io/cri-tools/cmd/"
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", crictl, module + "crictl"},
		{"test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", critest, module + "critest"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = "tools"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building the CRI tools: %v\n%s", err, out)
		}
	}
	return crictl, critest
}

// inNetwork makes a command run in the daemon's network namespace, where its streaming server is.
func (c *containerd) inNetwork(args ...string) command {
	return append(command{"nsenter", "--net=" + fmt.Sprintf("/proc/%d/ns/net", c.pid)}, args...)
}

// cri is crictl for one daemon, and the pods that it makes.
type cri struct {
	command
	dir string
}

func newCRI(t *testing.T, c *containerd, crictl string) *cri {
	t.Helper()
	ctr := append(c.ctr(), "--namespace", "k8s.io")
	for _, archive := range []string{archive(t, built.python), archive(t, built.pause)} {
		ctr.must(t, "image", "import", "--snapshotter", "native", archive)
	}
	k := &cri{append(c.inNetwork(crictl, "--config", c.dir+"/crictl.yaml"), "--runtime-endpoint", "unix://"+c.sock, "--timeout", "60s"), tempDir(t)}
	if err := os.WriteFile(c.dir+"/crictl.yaml", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the image to be known to CRI", func() bool { return k.run(t, "inspecti", pauseImage).code == 0 })
	t.Cleanup(func() { k.run(t, "rmp", "--all", "--force") })
	return k
}

// sandbox is what crictl calls a pod's configuration.
func (k *cri) sandbox(t *testing.T, name string, annotations map[string]string) string {
	t.Helper()
	return k.write(t, name+"-pod.json", map[string]any{
		"metadata": map[string]any{"name": name, "namespace": "default", "uid": name, "attempt": 0},
		"hostname": name, "log_directory": k.dir, "annotations": annotations,
		"linux": map[string]any{"cgroup_parent": "/psi-test-" + filepath.Base(built.dir)},
	})
}

// container is the configuration of a pod's container, with a limit of so many bytes of memory.
func (k *cri) container(t *testing.T, name string, memory int64, annotations map[string]string, args ...string) string {
	t.Helper()
	return k.write(t, name+".json", map[string]any{
		"metadata": map[string]any{"name": name}, "image": map[string]any{"image": pythonImage},
		"command": args, "log_path": name + ".log", "annotations": annotations,
		"linux": map[string]any{"resources": map[string]any{"memory_limit_in_bytes": memory}},
	})
}

func (k *cri) write(t *testing.T, name string, value any) string {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// logs waits until a container's log has a text, and returns it. containerd writes it after the
// process did.
func (k *cri) logs(t *testing.T, id, text string) string {
	t.Helper()
	var last string
	waitFor(t, fmt.Sprintf("the log to say %q", text), func() bool {
		r := k.run(t, "logs", id)
		last = r.stdout + r.stderr
		return strings.Contains(last, text)
	})
	return last
}

func TestCRI(t *testing.T) {
	watched(t)
	crictl, critest := criTools(t)
	cgroupParent(t)
	c := newContainerd(t)
	k := newCRI(t, c, crictl)
	t.Run("pod", k.pod)
	t.Run("deploy", k.deployed)
	t.Run("critest", func(t *testing.T) { c.validate(t, critest) })
}

// pod takes a pod of the runtime class psi through its life.
func (k *cri) pod(t *testing.T) {
	config := k.sandbox(t, "life", nil)
	pod := k.must(t, "runp", "--runtime", "psi", config)
	script := "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('up', flush=True)\nwhile True: time.sleep(1)"
	id := k.must(t, "create", "--no-pull", pod, k.container(t, "long", 256<<20, nil, python(script)...), config)
	k.must(t, "start", id)
	k.logs(t, id, "up")

	inside := python("import os, sys; print(os.uname().nodename); sys.exit(3)")
	if got := k.run(t, append([]string{"exec", id}, inside...)...); got.code == 0 || !strings.Contains(got.stdout, "life") || !strings.Contains(got.stderr, "exit code 3") {
		t.Errorf("exec: exit %d, %q, %q", got.code, got.stdout, got.stderr)
	}
	k.run(t, append([]string{"exec", "--sync", id}, python("print(6 * 7)")...)...).expect(t, 0, "42")
	stream := k.feed(t, "six\n", append([]string{"exec", "-i", id}, python("print(input().upper())")...)...)
	stream.expect(t, 0, "SIX\n")
	k.must(t, "update", "--memory", "134217728", id)
	inspected := k.must(t, "inspect", id)
	if !strings.Contains(inspected, `"runtimeType": "io.containerd.runc.v2"`) || !strings.Contains(inspected, built.runtime) {
		t.Errorf("the container is not run by %s:\n%s", built.runtime, inspected)
	}
	if stats := k.must(t, "stats", "--output", "json", id); !strings.Contains(stats, `"usageCoreNanoSeconds"`) {
		t.Errorf("stats says %s", stats)
	}
	k.must(t, "stop", "--timeout", "20", id)
	if state := k.must(t, "inspect", "--output", "go-template", "--template", "{{.status.state}} {{.status.exitCode}}", id); state != "CONTAINER_EXITED 5" {
		t.Errorf("after stop: %q", state)
	}
	k.must(t, "rm", id)
	k.must(t, "stopp", pod)
	k.must(t, "rmp", pod)
}

// deployment is what the test takes from deploy/kubernetes: nothing of the pod but its names is the
// test's own.
type deployment struct {
	Metadata struct{ Annotations map[string]string }
	Spec     struct {
		RuntimeClassName string `yaml:"runtimeClassName"`
		Containers       []struct {
			Image         string
			Command, Args []string
			Resources     struct{ Limits struct{ Memory string } }
		}
	}
	memory int64 // bytes of Limits.Memory
}

func readDeployment(t *testing.T) deployment {
	t.Helper()
	var d deployment
	var class struct{ Handler string }
	for name, into := range map[string]any{"runtimeclass.yaml": &class, "pod.yaml": &d} {
		data, err := os.ReadFile("../../../deploy/kubernetes/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(data, into); err != nil {
			t.Fatal(err)
		}
	}
	if d.Spec.RuntimeClassName != class.Handler || len(d.Spec.Containers) != 1 || d.Spec.Containers[0].Image != pythonImage {
		t.Fatalf("the example pod is of class %q, with containers %+v", d.Spec.RuntimeClassName, d.Spec.Containers)
	}
	var unit string
	n, err := fmt.Sscanf(d.Spec.Containers[0].Resources.Limits.Memory, "%d%s", &d.memory, &unit)
	if err != nil || n != 2 || unit != "Mi" {
		t.Fatalf("the example pod's memory limit is %q: the test reads Mi", d.Spec.Containers[0].Resources.Limits.Memory)
	}
	d.memory <<= 20
	return d
}

// deployed runs the pod of deploy/kubernetes as the kubelet would, which gives the pod's annotations
// to the pod alone: class, annotations, command and limit are those of the files. Then it tries which
// annotations reach a container, and which of two counts.
func (k *cri) deployed(t *testing.T) {
	d := readDeployment(t)
	run := func(t *testing.T, name string, pod, own map[string]string, args ...string) string {
		config := k.sandbox(t, name, pod)
		sandbox := k.must(t, "runp", "--runtime", d.Spec.RuntimeClassName, config)
		id := k.must(t, "create", "--no-pull", sandbox, k.container(t, name, d.memory, own, args...), config)
		k.must(t, "start", id)
		return id
	}
	t.Run("example", func(t *testing.T) {
		guest := d.Spec.Containers[0]
		id := run(t, "example", d.Metadata.Annotations, nil, append(guest.Command, guest.Args...)...)
		k.logs(t, id, "42")
		k.logs(t, id, "PermissionError")
	})
	narrow := map[string]string{"io.psi.policy": "mem: 32MiB"}
	for _, test := range []struct {
		name     string
		pod, own map[string]string
		says     string // its memory limit, and what becomes of a connection
	}{
		{"none", nil, nil, fmt.Sprint(d.memory, " ConnectionRefusedError")},
		{"pod", narrow, nil, "33554432 PermissionError"},
		{"container", nil, narrow, "33554432 PermissionError"},
		{"both", d.Metadata.Annotations, narrow, "33554432 PermissionError"},
		{"both-wider", narrow, map[string]string{"io.psi.policy": "mem: 128MiB"}, "134217728 PermissionError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := run(t, "annotated-"+test.name, test.pod, test.own, python(memoryLimit+"\n"+connect)...)
			said := strings.Join(strings.Fields(k.logs(t, id, "Error")), " ")
			if said != test.says {
				t.Errorf("the container says %q, want %q", said, test.says)
			}
		})
	}
	t.Run("forged", func(t *testing.T) {
		config := k.sandbox(t, "forged", map[string]string{"io.psi.policy": `{"mem": -1}`})
		if got := k.run(t, "runp", "--runtime", d.Spec.RuntimeClassName, config); got.code == 0 || !strings.Contains(got.stderr, "io.psi.policy") {
			t.Errorf("a policy that cannot be read: exit %d, stderr %q", got.code, got.stderr)
		}
	})
}
