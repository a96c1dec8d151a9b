package supervisor

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/attend"
)

// refusedConnects makes n connections to an endpoint that no rule names, and posts how
// many were refused by the policy.
func refusedConnects(n int) string {
	return `
import socket
denied = 0
for _ in range(` + strconv.Itoa(n) + `):
    with socket.socket() as s:
        try: s.connect(("127.0.0.1", 9))
        except PermissionError: denied += 1
post(denied)`
}

// details are those of a pushed event, checked to be JSON of the right shape.
func details(t *testing.T, event map[string]any) map[string]any {
	t.Helper()
	d, ok := event["details"].(map[string]any)
	if !ok {
		t.Fatalf("no details: %v", event)
	}
	return d
}

func TestDenied(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "denied", map[string]any{"tcp": []any{"127.0.0.1:1", "10.0.0.0/8:80", map[string]any{"deny": "10.1.0.0/16:80"}}})
	if got := g.run(t, refusedConnects(1)); got != "1" {
		t.Fatalf("%s denials", got)
	}
	ev := c.event(t, "DENIED", scaled(5*time.Second))
	d := details(t, ev)
	for key, want := range map[string]any{
		"kind": "net", "operation": "connect", "address": "127.0.0.1:9", "errno": "EPERM", "rule": nil, "suppressed": 0.0,
	} {
		if d[key] != want {
			t.Errorf("%s is %v, want %v", key, d[key], want)
		}
	}
	if ev["guest"] != g.id || ev["name"] != "denied" || d["pid"].(float64) < 1 || d["command"] == "" {
		t.Errorf("event: %v", ev)
	}
	if ts := ev["ts"].(float64); ts < float64(time.Now().Add(-time.Minute).Unix()) || ts > float64(time.Now().Unix()+1) {
		t.Errorf("ts is %v", ts)
	}
	// A rule that denies is named.
	g.run(t, "import socket\ntry: socket.create_connection(('10.1.2.3', 80), 5)\nexcept OSError as e: post(e.errno)")
	if d := details(t, c.event(t, "DENIED", scaled(5*time.Second))); d["rule"] != `tcp: {deny: "10.1.0.0/16:80"}` {
		t.Errorf("details: %v", d)
	}
}

// The command's name is the guest's to choose, and may hold what a terminal obeys.
func TestDeniedByAHostileName(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "hostile", nil)
	g.run(t, `open("/proc/self/comm", "wb").write(b"\x1b[2J\n\"},\xff\xc2\x9b")`+refusedConnects(1))
	d := details(t, c.event(t, "DENIED", scaled(5*time.Second)))
	if want := "\x1b[2J\n\"},\ufffd\u009b"; d["command"] != want {
		t.Errorf("command %q, want %q", d["command"], want)
	}
}

// 20,000 denials of a guest whose client does not read meanwhile: the client is not
// dropped for it, gets a bounded number of events, and none is lost from the count.
func TestDenialFloodIsBounded(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "flood", nil)
	began := time.Now()
	const flood = 20_000
	if got := g.run(t, refusedConnects(flood)); got != strconv.Itoa(flood) {
		t.Fatalf("%s denials", got)
	}
	took := time.Since(began)
	events, suppressed := 0, 0
	for events+suppressed < flood {
		d := details(t, c.event(t, "DENIED", scaled(10*time.Second)))
		if d["kind"] != "suppressed" {
			events++
		}
		suppressed += int(d["suppressed"].(float64))
	}
	t.Logf("%d events, %d suppressed in %v", events, suppressed, took)
	if events+suppressed != flood {
		t.Errorf("%d events and %d suppressed of %d", events, suppressed, flood)
	}
	if bound := 51 + int(100*(took.Seconds()+1)); events > bound {
		t.Errorf("%d events in %v, allowed are %d", events, took, bound)
	}
	c.must(t, map[string]any{"op": "stats", "guest": g.id})
}

// denial is an event as attend makes it.
func denial(suppressed uint64) attend.Event {
	return attend.Event{Time: time.Now(), Type: attend.Denied, Details: map[string]any{"kind": "net", "suppressed": suppressed}}
}

// A client whose queue is full goes without denials, and is told how many: by the next
// one, after a while, or at the guest's end.
func TestDenialsGiveWay(t *testing.T) {
	for _, how := range []string{"next", "wait", "end"} {
		c := &client{out: make(chan message, queueLength)}
		s := &Supervisor{clients: map[*client]struct{}{c: {}}}
		g := &guest{s: s, id: "psi-x", client: c, announced: true, ended: make(chan struct{})}
		for range queueLength {
			g.denied(denial(1))
		}
		if len(c.out) != queueLength/2 || c.dropped {
			t.Fatalf("%d messages wait, dropped %v", len(c.out), c.dropped)
		}
		total := 0
		told := func(m message) {
			var ev pushedEvent
			if err := json.Unmarshal(m.body, &ev); err != nil {
				t.Fatal(err)
			}
			if total += int(ev.Details["suppressed"].(float64)); ev.Details["kind"] != "suppressed" {
				total++
			}
		}
		for range 10 {
			told(<-c.out)
		}
		want := 2 * queueLength
		switch how {
		case "next":
			g.denied(denial(0))
			want++
		case "end":
			close(g.ended)
			g.retell()
		}
		for end := time.After(scaled(20 * time.Second)); total < want; {
			select {
			case m := <-c.out:
				told(m)
			case <-end:
				t.Fatalf("%s: told of %d denials, want %d", how, total, want)
			}
		}
		if total != want {
			t.Errorf("%s: told of %d denials, want %d", how, total, want)
		}
	}
}

// What only the proxy knows to be forbidden is an event too: each wildcard has ports of
// its own, which to the kernel are those of all names.
func TestDeniedByTheProxy(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "names", map[string]any{"tcp": []string{"*.example.org:443", "*.example.com:80"}})
	got := g.run(t, `
import socket
where = socket.getaddrinfo("a.example.org", 443, type=socket.SOCK_STREAM)[0][4][0]
try:
    socket.create_connection((where, 80), 5).recv(1)
    post("nothing")
except ConnectionResetError: post("reset")`)
	if got != "reset" {
		t.Fatalf("connecting a name at another's port: %s", got)
	}
	d := details(t, c.event(t, "DENIED", scaled(5*time.Second)))
	for key, want := range map[string]any{
		"kind": "net", "operation": "connect", "protocol": "tcp", "name": "a.example.org", "reason": "not allowed", "errno": "ECONNRESET", "rule": nil, "suppressed": 0.0,
	} {
		if d[key] != want {
			t.Errorf("%s is %v, want %v", key, d[key], want)
		}
	}
}
