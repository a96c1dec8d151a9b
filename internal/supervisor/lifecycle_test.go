package supervisor

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
)

func TestSpawnRunsCode(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "guest42", map[string]any{"mem": "128MiB", "cpu": 0.5})
	if got := g.run(t, "from math import sqrt; post(sqrt(2))"); got != "1.4142135623730951" {
		t.Errorf("posted %s", got)
	}
	if limits := g.reply["limits"].(map[string]any); limits["mem"] != 128.0*(1<<20) || limits["cpu"] != 0.5 {
		t.Errorf("limits: %v", limits)
	}
	list := string(c.must(t, map[string]any{"op": "list"}).OK)
	if !strings.Contains(list, `"name":"guest42"`) || !strings.Contains(list, g.reply["policy_digest"].(string)) {
		t.Errorf("list: %s", list)
	}
	stats := string(c.must(t, map[string]any{"op": "stats", "guest": g.id}).OK)
	if !strings.Contains(stats, `"pids":`) || strings.Contains(stats, `"cpu_ms":0,`) || strings.Contains(stats, `"mem_bytes":0,`) {
		t.Errorf("stats: %s", stats)
	}
	c.refused(t, control.KindSandbox, "already running", map[string]any{"op": "spawn", "name": "guest42"})
	c.must(t, map[string]any{"op": "close", "guest": g.id})
	if pids := pidsOf(g.id); len(pids) > 0 {
		t.Errorf("after close these run: %v", pids)
	}
	if e := c.exited(t, scaled(5*time.Second)); e["cause"] != control.CauseClosed || e["guest"] != g.id || e["name"] != "guest42" {
		t.Errorf("exited: %v", e)
	}
	c.must(t, map[string]any{"op": "close", "guest": g.id}) // once more is no error
	c.spawn(t, "guest42", nil)                              // and the name is free at once
}

func TestCloseKillsAGuestThatWillNotEnd(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "stubborn", nil)
	c.occupy(t, g)
	start := time.Now()
	c.must(t, map[string]any{"op": "close", "guest": g.id, "timeout": 0.3})
	if took := time.Since(start); took < 300*time.Millisecond || took > scaled(2*time.Second) {
		t.Errorf("closing took %v", took)
	}
	if e := c.exited(t, scaled(5*time.Second)); e["cause"] != control.CauseClosed || e["signal"] != 9.0 {
		t.Errorf("exited: %v", e)
	}
}

func TestCauses(t *testing.T) {
	_, c := embedded(t)
	cpu, wall := scaled(500*time.Millisecond).Milliseconds(), scaled(700*time.Millisecond).Milliseconds()
	grow := "b = []\nwhile True: b.append(bytearray(1 << 20))"
	child := "import os, time\nif os.fork() == 0:\n " + strings.ReplaceAll(grow, "\n", "\n ") + "\ntime.sleep(60)"
	for _, test := range []struct {
		name   string
		policy map[string]any
		source string
		event  string
		want   map[string]any
	}{
		{"exit", nil, "import os; os._exit(7)", "", map[string]any{"cause": control.CauseExit, "code": 7.0, "signal": nil}},
		{"fault", nil, "import ctypes; ctypes.string_at(0)", "", map[string]any{"cause": control.CauseSignal, "code": nil, "signal": 11.0}},
		{"memory", map[string]any{"mem": "64MiB"}, grow, "MEM_KILL", map[string]any{"cause": "oom", "limit": 64.0 * (1 << 20)}},
		{"memory-of-child", map[string]any{"mem": "64MiB"}, child, "MEM_KILL", map[string]any{"cause": "oom", "limit": 64.0 * (1 << 20)}},
		{"cpu", map[string]any{"cpu_ms": cpu}, "while True: pass", "CPU_THROTTLE", map[string]any{"cause": "cpu", "limit": float64(cpu)}},
		{"wall", map[string]any{"wall_ms": wall}, "import time; time.sleep(600)", "", map[string]any{"cause": "wall", "limit": float64(wall)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := c.spawn(t, test.name, test.policy)
			if err := g.start(test.source); err != nil {
				t.Fatal(err)
			}
			events, e := c.untilExit(t, scaled(20*time.Second))
			told := 0
			for _, ev := range events {
				if ev["event"] != test.event {
					continue
				}
				if told++; ev["guest"] != g.id || ev["name"] != test.name {
					t.Errorf("event: %v", ev)
				}
				if ts := ev["ts"].(float64); math.Abs(ts-float64(time.Now().Unix())) > 600 {
					t.Errorf("ts: %v", ts)
				}
			}
			// The quota may have been used up besides.
			if test.event != "" && told == 0 || told > 1 && test.event == "MEM_KILL" {
				t.Errorf("%d events %s before the end: %v", told, test.event, events)
			}
			for key, want := range test.want {
				if e[key] != want {
					t.Errorf("%s is %v, want %v, in %v", key, e[key], want, e)
				}
			}
			if test.name == "cpu" {
				if over := e["observed"].(float64) - float64(cpu); over < 0 || over > float64(scaled(100)) {
					t.Errorf("the cpu budget of %d ms was passed by %v ms", cpu, over)
				}
			}
		})
	}
}

// A guest that is killed from outside, by nobody that the supervisor knows.
func TestKilledFromOutside(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "victim", nil)
	for _, pid := range pidsOf(g.id) {
		n, _ := strconv.Atoi(pid)
		_ = unix.Kill(n, unix.SIGKILL)
	}
	if e := c.exited(t, scaled(5*time.Second)); e["cause"] != control.CauseSignal || e["signal"] != 9.0 {
		t.Errorf("exited: %v", e)
	}
}

// One busy stretch is one event, two are two.
func TestThrottleIsToldOncePerOccurrence(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "busy", map[string]any{"cpu": 0.2})
	time.Sleep(2 * throttleWindow) // what the start cost is over
	drain(c)
	busy := "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
	for range 2 {
		g.run(t, busy)
		time.Sleep(2 * throttleWindow)
	}
	var events []map[string]any
	for len(c.pushed) > 0 {
		events = append(events, <-c.pushed)
	}
	if len(events) != 2 {
		t.Errorf("%d events for two busy stretches: %v", len(events), events)
	}
	for _, ev := range events {
		if ev["event"] != "CPU_THROTTLE" || ev["details"].(map[string]any)["reason"] != "quota" {
			t.Errorf("event: %v", ev)
		}
	}
}

// throttleWindow is longer than attend takes to call an occurrence over.
const throttleWindow = time.Second

func drain(c *testClient) {
	for len(c.pushed) > 0 {
		<-c.pushed
	}
}

func TestParallelSpawns(t *testing.T) {
	_, c := embedded(t)
	const count = 20
	guests := make([]*testGuest, count)
	var wait sync.WaitGroup
	for i := range guests {
		wait.Go(func() {
			a, err := c.ask(map[string]any{"op": "spawn", "name": fmt.Sprint("g", i), "policy": map[string]any{"mem": "64MiB"}})
			if err == nil {
				guests[i], err = newTestGuest(a)
			}
			if err != nil {
				t.Errorf("guest %d: %v", i, err)
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		return
	}
	uids := make(map[string]bool)
	for i, g := range guests {
		t.Cleanup(func() { g.close(t) })
		if got := g.run(t, fmt.Sprintf("import os; post(%d * 2)", i)); got != fmt.Sprint(2*i) {
			t.Errorf("guest %d posted %s", i, got)
		}
		status, _ := os.ReadFile("/proc/" + pidsOf(g.id)[0] + "/status")
		_, uid, _ := strings.Cut(string(status), "\nUid:\t")
		uid, _, _ = strings.Cut(uid, "\t")
		if uid == "0" || uid == "" || uids[uid] {
			t.Errorf("guest %d has host uid %q", i, uid)
		}
		uids[uid] = true
	}
	for i, g := range guests {
		wait.Go(func() {
			if _, err := c.ask(map[string]any{"op": "close", "guest": g.id, "timeout": 5}); err != nil {
				t.Errorf("closing guest %d: %v", i, err)
			}
		})
	}
	wait.Wait()
}

func TestReportEndsAndTellsEveryWatcher(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	owner, watcher, other := dialAs(t, socket, 0, gid), dialAs(t, socket, 0, gid), dialAs(t, socket, 0, gid)
	owner.hello(t)
	other.hello(t)
	watcher.must(t, map[string]any{"op": "hello", "version": 2, "watch": true})
	g := owner.spawn(t, "liar", nil)
	owner.must(t, map[string]any{"op": "report", "guest": g.id, "error": "frame of 4 GiB"})
	for _, c := range []*testClient{owner, watcher} {
		ev := c.event(t, control.Broken, scaled(5*time.Second))
		if ev["details"].(map[string]any)["error"] != "frame of 4 GiB" {
			t.Errorf("event: %v", ev)
		}
		if e := c.exited(t, scaled(5*time.Second)); e["cause"] != control.CauseSupervisor || !strings.Contains(e["message"].(string), "4 GiB") {
			t.Errorf("exited: %v", e)
		}
	}
	if len(other.pushed) > 0 {
		t.Errorf("a connection that does not watch was told %v", <-other.pushed)
	}
}
