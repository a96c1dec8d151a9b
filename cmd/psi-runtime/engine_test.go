package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
)

// annotated is a bundle of an engine with annotations.
func annotated(pairs ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Annotations = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			s.Annotations[pairs[i]] = pairs[i+1]
		}
	}
}

// configured writes a configuration file.
func configured(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "runtime.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPolicyByFlag(t *testing.T) {
	c := newLine(t)
	const limit = "read a < /proc/self/limits; while read name of files soft hard unit; do case $name-$of in Max-open) echo $soft; esac; done < /proc/self/limits"
	plain, narrower := c.bundle(limit), c.bundle(limit, annotated("io.psi.policy", "{open_files: 77}"))
	wider := c.bundle("true", annotated("io.psi.policy", "{mem: 512GiB}"))
	if r := c.run("--policy", "defaults", "run", "-b", plain, "x"); r.code != 0 || r.out != "256\n" {
		t.Errorf("%+v", r)
	}
	if r := c.run("--policy", "defaults", "run", "-b", narrower, "x"); r.code != 0 || r.out != "77\n" {
		t.Errorf("%+v", r)
	}
	if r := c.run("--policy", "defaults", "run", "-b", wider, "x"); r.code != 1 || !strings.Contains(r.err, "permits what --policy defaults does not") {
		t.Errorf("%+v", r)
	}
	if r := c.run("--policy", "no-such", "run", "-b", plain, "x"); r.code != 1 || !strings.Contains(r.err, "no-such") {
		t.Errorf("%+v", r)
	}
	own := c.bundle("true", withPolicy("{}"))
	if r := c.run("--policy", "defaults", "run", "-b", own, "x"); r.code != 1 || !strings.Contains(r.err, "does not count") {
		t.Errorf("%+v", r)
	}
}

// The name by which psi-runtime is started is a class of the configuration.
func TestPolicyByClass(t *testing.T) {
	c := newLine(t)
	config := configured(t, "annotations = []\n[class.psi-strict]\npolicy = 'readonly-fs'\nmandatory = true\n")
	bundle := c.bundle("cat /proc/self/status")
	start := func(name string, more ...string) result {
		cmd := c.command(append([]string{"--config", config}, more...)...)
		cmd.Args[0] = name
		return c.wait(cmd)
	}
	if r := start("/usr/bin/psi-runtime", "run", "-b", bundle, "x"); r.code != 0 || !strings.Contains(r.out, "Seccomp:\t0") {
		t.Errorf("%+v", r)
	}
	if r := start("/usr/bin/psi-strict", "run", "-b", bundle, "x"); r.code != 0 || !strings.Contains(r.out, "Seccomp:\t2") {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"psi-runtime", "psi-strict"} {
		r := start(name, "run", "-b", c.bundle("true", annotated("io.psi.policy", "defaults")), "x")
		if r.code != 1 || !strings.Contains(r.err, "does not count") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	config = configured(t, "polcy = 'x'\n")
	if r := start("psi-runtime", "run", "-b", bundle, "x"); r.code != 1 || !strings.Contains(r.err, `runtime.toml:1:1: \"polcy\" is not a key`) {
		t.Errorf("%+v", r)
	}
	config = "/no/such/file"
	if r := start("psi-runtime", "run", "-b", bundle, "x"); r.code != 1 || !strings.Contains(r.err, config) {
		t.Errorf("%+v", r)
	}
}

func TestStateOfAPolicy(t *testing.T) {
	c := newLine(t)
	id := fmt.Sprintf("protected-%d", os.Getpid())
	bundle := c.bundle("sleep 1000", annotated("io.psi.policy", "{mem: 64MiB, wall_ms: 60000, allow_degraded: true, tcp: ['db.example:1']}", "a", "b", "io.psi.enforced", "all"))
	c.detached("run", "-d", "-b", bundle, id)
	var state shownState
	if err := json.Unmarshal([]byte(c.ok("state", id)), &state); err != nil {
		t.Fatal(err)
	}
	if state.Psi == nil || !strings.HasPrefix(state.Psi.Policy, "sha256:") || !state.Psi.Degraded || len(state.Annotations) != 2 || state.Annotations["a"] != "b" {
		t.Fatalf("%+v", state)
	}
	rules := map[string]string{}
	for _, e := range state.Psi.Enforced {
		rules[e.Rule] = e.By
		if e.Missing != (e.Rule == "tcp: db.example:1") {
			t.Errorf("%+v", e)
		}
	}
	for rule, by := range map[string]string{"mem: 64MiB": "memory cgroup: 64MiB", "wall_ms: 60000": "psi-runtime attend", "pids: 64": "pids cgroup: 64"} {
		if rules[rule] != by {
			t.Errorf("%s is held by %q", rule, rules[rule])
		}
	}
	wants(t, "list", c.ok("list"), "POLICY")
	wants(t, "list", c.ok("list"), state.Psi.Policy[:len("sha256:")+12])
	wants(t, "list -f json", c.ok("list", "-f", "json"), state.Psi.Policy)
	c.ok("update", "--memory", "1G", "--pids-limit", "1000", id)
	if r := c.run("update", "--resources", configured(t, `{"unified": {"cgroup.procs": "1"}}`), id); r.code != 1 || !strings.Contains(r.err, "cgroup.procs") {
		t.Errorf("%+v", r)
	}
	if r := c.run("exec", id, "cat", "/proc/self/status"); r.code != 0 || !strings.Contains(r.out, "NoNewPrivs:\t1") || !strings.Contains(r.out, "CapBnd:\t0000000020000420\n") {
		t.Errorf("%+v", r)
	}
	if r := c.run("checkpoint", id); r.code == 0 {
		t.Errorf("checkpoint: %+v", r)
	}
}

// A container that ends before anybody looks at its throttling is told of what was counted.
func TestThrottledForAMoment(t *testing.T) {
	c := newLine(t)
	r := c.run("run", "-b", c.bundle("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done", annotated("io.psi.policy", "{cpu: 0.1}")), "x")
	if r.code != 0 || strings.Count(r.err, "CPU_THROTTLE") != 1 || !strings.Contains(r.err, "reason=quota") {
		t.Errorf("%+v", r)
	}
	r = c.run("run", "-b", c.bundle("true", annotated("io.psi.policy", "{cpu: 1}")), "x")
	if r.code != 0 || strings.Contains(r.err, "CPU_THROTTLE") {
		t.Errorf("%+v", r)
	}
}

func TestDuplicateAnnotations(t *testing.T) {
	for text, twice := range map[string]bool{
		`{"annotations": {"io.psi.policy": "a", "io.psi.policy": "b"}}`:         true,
		`{"annotations": {"io.psi.policy": "a", "io.p\u0073i.policy": "b"}}`:    true,
		`{"annotations": {"io.psi.policy": "a"}, "annotations": {}}`:            true,
		`{"annotations": {"io.psi.policy": "a"}, "Annotations": {"x": "y"}}`:    true,
		`{"annotations": {"io.psi.policy": "a", "x": "b"}, "process": {}}`:      false,
		`{"annotations": null, "hostname": "psi"}`:                              false,
		`{"process": {"annotations": {"psi": 1, "psi": 2}}, "hostname": "psi"}`: false,
		`{"annotations": {"a": "psi", "b": "a", "c": "a"}}`:                     false,
		`{"ANNOTATIONſ": {"io.psi.policy": "a"}, "annotations": {}}`:            true,
		`{"annotations": {"a": "1", "a": "2"}}`:                                 false, // none of ours
	} {
		if _, err := decodeSpec([]byte(text)); twice != (err != nil) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whoever changes a container waits for the others, and nothing that one of them has
// asked for is lost.
func TestApplyBesideOthers(t *testing.T) {
	c := newLine(t)
	id := fmt.Sprintf("beside-%d", os.Getpid())
	c.detached("run", "-d", "-b", c.bundle("sleep 1000", annotated("io.psi.policy", "{mem: 64MiB, pids: 50}")), id)
	wide, narrow := configured(t, "{mem: 256MiB, pids: 60}"), configured(t, "{mem: 32MiB, pids: 40}")
	const times = 8
	var all sync.WaitGroup
	for _, line := range [][]string{
		{"policy", "apply", id, wide}, {"policy", "apply", id, narrow}, {"exec", id, "sh", "-c", ":"},
		{"update", "--memory", "100M", id}, {"update", "--pids-limit", "45", id}, {"policy", "apply", "--dry-run", id, wide},
	} {
		all.Go(func() {
			for range times {
				if r := c.run(line...); r.code != 0 {
					t.Errorf("%v: %+v", line, r)
				}
			}
		})
	}
	all.Wait()
	var state shownState
	for _, want := range []struct{ file, mem, pids string }{{wide, "100MiB", "45"}, {narrow, "32MiB", "40"}, {wide, "100MiB", "45"}} {
		c.ok("policy", "apply", id, want.file)
		if err := json.Unmarshal([]byte(c.ok("state", id)), &state); err != nil {
			t.Fatal(err)
		}
		held := fmt.Sprint(state.Psi.Enforced)
		if !strings.Contains(held, "memory cgroup: "+want.mem) || !strings.Contains(held, "pids cgroup: "+want.pids) {
			t.Errorf("%s", held)
		}
	}
}

// What is not told of on this host is told by state, and nobody is waited for.
func TestStateOfWhatIsUntold(t *testing.T) {
	dir := t.TempDir()
	stuck := make(chan struct{})
	server, err := control.ServePolicy(dir, func(c control.PolicyChange) (any, error) {
		if !c.Untold {
			t.Errorf("%+v", c)
		}
		select {
		case <-stuck:
		default:
			return []engine.Enforcement{{Rule: "cpu", By: "cgroup; CPU_THROTTLE is not told"}}, nil
		}
		time.Sleep(2 * time.Second)
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s := shownState{State: container.State{PID: 1}, Psi: &protection{}}
	s.untold(dir)
	if len(s.Psi.Enforced) != 1 || s.Psi.Enforced[0].Rule != "cpu" {
		t.Errorf("%+v", s.Psi)
	}
	close(stuck)
	begun := time.Now()
	s.untold(dir)
	if took := time.Since(begun); took > 1800*time.Millisecond || len(s.Psi.Enforced) != 1 {
		t.Errorf("after %v: %+v", took, s.Psi)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	s.untold(dir)
	if len(s.Psi.Enforced) != 1 {
		t.Errorf("%+v", s.Psi)
	}
}
