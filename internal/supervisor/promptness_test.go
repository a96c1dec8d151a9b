package supervisor

import (
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/channel"
)

// prompt is how long after the kernel has done something its event may be made.
const prompt = 100 * time.Millisecond

// lastWord reads what the guest posts until its channel ends, and returns the last.
func (g *testGuest) lastWord(t *testing.T) (last float64) {
	t.Helper()
	for {
		frame, err := g.in.Read()
		if err != nil {
			return last
		}
		if frame.Type != channel.GuestPost {
			continue
		}
		value, err := channel.Decode(frame.Payload, channel.DecodeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last, _ = value.(float64)
	}
}

// A guest that is killed for memory is one event, made as soon as the kernel has acted:
// until its end the guest says what time it is. Of three tries one may be held up by what
// else the machine has to do, and another one.
func TestMemKillIsTold(t *testing.T) {
	_, c := embedded(t)
	for _, how := range []string{
		"hold.append(bytearray(1 << 20))",
		"subprocess_fork()",
	} {
		late := time.Hour
		for try := 0; try < 3 && late > scaled(prompt); try++ {
			late = memKill(t, c, how)
			t.Logf("%s: told %v after the guest's last word", how, late)
		}
		if late > scaled(prompt) {
			t.Errorf("%s: told %v after the guest's last word, allowed are %v", how, late, prompt)
		}
	}
}

// memKill has a guest run out of memory, and returns how long after its last word that was told.
func memKill(t *testing.T, c *testClient, how string) (late time.Duration) {
	t.Helper()
	g := c.spawn(t, "glutton", map[string]any{"mem": "48MiB"})
	defer g.close(t)
	err := g.start(strings.Join([]string{
		"import os, time, threading", "hold = []",
		"def subprocess_fork():", " if os.fork() == 0:", "  hold.extend(bytearray(1 << 20) for _ in range(4096)); os._exit(0)", " time.sleep(9)",
		"def clock():", " while True: post(time.time()); time.sleep(0.002)",
		"threading.Thread(target=clock, daemon=True).start()", "time.sleep(0.05)", "while True: " + how,
	}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	last := g.lastWord(t)
	events, exit := c.untilExit(t, scaled(20*time.Second))
	kills := 0
	for _, ev := range events {
		if ev["event"] == "MEM_KILL" {
			kills++
			late = time.Duration((ev["ts"].(float64) - last) * float64(time.Second))
		}
	}
	if kills != 1 || exit["cause"] != "oom" {
		t.Errorf("%s: %d events, exited %v", how, kills, exit)
	}
	return late
}

// A guest that begins to compute is held back when its share of a period is used up, which
// is told then, and not when the period ends. The best of three stretches counts: at any
// moment the machine may have other things to do.
func TestThrottleIsToldInTime(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "busy", map[string]any{"cpu": 0.1})
	const share, telling = 10 * time.Millisecond, 40 * time.Millisecond
	best, counted := time.Hour, 0
	for try := 0; try < 8 && counted < 3; try++ {
		g.run(t, "post(0)") // it may still be starting, in a stretch that would go on
		time.Sleep(2 * throttleWindow)
		drain(c)
		began := g.run(t, "import time\nt = time.time()\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass\npost(int(t * 1000))")
		ev := c.event(t, "CPU_THROTTLE", scaled(5*time.Second))
		start, err := time.ParseDuration(began + "ms")
		if err != nil {
			t.Fatal(err)
		}
		late := time.Duration(ev["ts"].(float64)*float64(time.Second)) - start
		t.Logf("told %v after the guest began to compute", late)
		if late < 0 {
			continue // on a slow machine the request alone uses the share up
		}
		best = min(best, late)
		counted++
	}
	if bound := scaled(share + telling); counted > 0 && best > bound {
		t.Errorf("told %v after the guest began to compute, allowed are %v", best, bound)
	}
}
