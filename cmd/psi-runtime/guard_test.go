package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// A denial that no rule decided names none in the log.
func TestLogFields(t *testing.T) {
	fields := logFields(map[string]any{"rule": nil, "suppressed": 0, "path": ""})
	if _, there := fields["rule"]; there || len(fields) != 2 {
		t.Errorf("fields %v", fields)
	}
}

func TestBadPolicyIsRefused(t *testing.T) {
	c := newLine(t)
	for document, want := range map[string]string{
		`{"mem": "lots"}`:              "mem",
		`{"no_such_key": 1}`:           "no_such_key",
		`not a policy`:                 "policy",
		`{"tcp": ["127.0.0.1:99999"]}`: "99999",
	} {
		for _, command := range []string{"run", "create"} {
			r := c.run(command, "-b", c.bundle("true", withPolicy(document)), "x")
			if r.code != 1 || !strings.Contains(r.err, want) {
				t.Errorf("%s %s: exit code %d, %q", command, document, r.code, r.err)
			}
		}
	}
	bundle := c.bundle("true", withPolicy(`{}`), func(s *specs.Spec) {
		for i, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = "/proc/self/ns/net"
			}
		}
	})
	if r := c.run("run", "-b", bundle, "x"); r.code != 1 || !strings.Contains(r.err, "network namespace of its own") {
		t.Errorf("a network that is not the guest's: %d, %q", r.code, r.err)
	}
}

func TestClocksOfRun(t *testing.T) {
	c := newLine(t)
	for name, tc := range map[string]struct{ document, script, want string }{
		"wall": {`{"wall_ms": 200}`, "sleep 1000", "wall_ms: 200"},
		"soon": {`{"wall_ms": 1}`, "sleep 1000", "wall_ms: 1,"}, // before its program begins
		"cpu":  {`{"cpu_ms": 200}`, "while :; do :; done", "cpu_ms: 200"},
	} {
		began := time.Now()
		r := c.run("run", "-b", c.bundle(tc.script, withPolicy(tc.document)), "x")
		if r.code != 137 {
			t.Errorf("%s: exit code %d", name, r.code)
		}
		wants(t, name, r.err, tc.want)
		if d := time.Since(began); d > 60*time.Second { // in which nothing else would end it
			t.Errorf("%s: it took %v", name, d)
		}
	}
}

func TestOutOfMemoryEndsTheGuest(t *testing.T) {
	c := newLine(t)
	mem := int64(32 << 20)
	bundle := c.bundle("sleep 1000 & x=aaaaaaaaaaaaaaaa; (while :; do x=$x$x; done); wait", withPolicy(`{"mem": 33554432}`), func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &mem, Swap: &mem}
	})
	r := c.run("run", "-b", bundle, "x")
	if r.code != 137 || !strings.Contains(r.err, "more memory") {
		t.Errorf("exit code %d, %q", r.code, r.err)
	}
}

func TestHostsOfTheGuest(t *testing.T) {
	c := newLine(t)
	r := c.run("run", "-b", c.bundle("cat /etc/hosts", withPolicy(`{"tcp": ["db.example:5432"]}`)), "x")
	if r.code != 0 || !strings.Contains(r.out, "db.example") {
		t.Errorf("%+v", r)
	}
}

// attendants are the processes `create` left for a container.
func attendants(t *testing.T, id string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		words := strings.Split(string(data), "\x00")
		if err != nil || !strings.Contains(string(data), "\x00attend\x00") || len(words) < 2 || words[len(words)-2] != id {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestCreatedGuestIsAttended(t *testing.T) {
	c := newLine(t)
	id := fmt.Sprintf("attended-%d", os.Getpid())
	bundle := c.bundle("sleep 1000", withPolicy(`{"wall_ms": 60000}`))
	status := func() string {
		var s container.State
		if err := json.Unmarshal([]byte(c.ok("state", id)), &s); err != nil {
			t.Fatal(err)
		}
		return s.Status
	}

	c.detached("create", "-b", bundle, id)
	c.ok("start", id)
	eventually(t, "two processes attend it", func() bool { return len(attendants(t, id)) == 2 })
	c.ok("delete", "-f", id)
	eventually(t, "nobody attends it", func() bool { return len(attendants(t, id)) == 0 })

	// Whichever of the two dies, the container dies.
	for which := range 2 {
		c.quiet("create", "-b", bundle, id)
		c.ok("start", id)
		eventually(t, "two processes attend it", func() bool { return len(attendants(t, id)) == 2 })
		if err := unix.Kill(attendants(t, id)[which], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the container has ended", func() bool { return status() == "stopped" })
		c.ok("delete", id)
	}
}

// Who attends a guest that sleeps, sleeps too. The quietest second of ten counts: what the
// program does about its own memory comes and goes.
func TestAttendantOfIdleGuestSleeps(t *testing.T) {
	c := newLine(t)
	id := fmt.Sprintf("idle-%d", os.Getpid())
	c.detached("run", "-d", "-b", c.bundle("sleep 1000", withPolicy(`{"cpu": 0.5}`)), id)
	eventually(t, "two processes attend it", func() bool { return len(attendants(t, id)) == 2 })
	wakes := func() (n int) {
		for _, pid := range attendants(t, id) {
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
			for _, thread := range threads {
				data, _ := os.ReadFile(thread)
				_, after, _ := strings.Cut(string(data), "\nvoluntary_ctxt_switches:")
				word, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
				count, _ := strconv.Atoi(word)
				n += count
			}
		}
		return n
	}
	least, before := math.MaxInt, wakes()
	for try := 0; try < 10 && least > 2; try++ {
		time.Sleep(time.Second)
		now := wakes()
		least, before = min(least, now-before), now
	}
	if before == 0 || least > 2 {
		t.Errorf("%d times awake in the quietest second", least)
	}
}

func TestClockOfCreated(t *testing.T) {
	c := newLine(t)
	id := fmt.Sprintf("clock-%d", os.Getpid())
	c.detached("run", "-d", "-b", c.bundle("sleep 1000", withPolicy(`{"wall_ms": 3000}`)), id)
	eventually(t, "it has been ended", func() bool { return strings.Contains(c.ok("state", id), `"stopped"`) })
}
