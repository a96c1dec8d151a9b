package integration

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// deniedGuest is refused once, by a hostile name, and when it gets SIGTERM 3,000 times;
// then it takes memory until it is killed.
const deniedGuest = `
import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
open("/proc/self/comm", "wb").write(b"\x1b[2J\n\xff")
def refused():
    with socket.socket() as s:
        try: s.connect(("127.0.0.1", 9))
        except PermissionError: return
    raise SystemExit(3)
refused()
signal.sigwait({signal.SIGTERM})
for _ in range(3000): refused()
hold = []
while True: hold.append(bytearray(1 << 20))
`

// What happens to a container that no supervisor runs is told by psi-runtime events:
// what was before, what comes, and how much there was no room for.
func TestEventsOfAContainer(t *testing.T) {
	policy := "mem: 48MiB\ntcp: ['127.0.0.1:1']\n"
	bundle := bundleOf(t, policy, deniedGuest)
	for _, how := range []string{"attended by its creator", "attended in the background"} {
		t.Run(how, func(t *testing.T) {
			watched(t)
			id := newID(t)
			t.Cleanup(func() { psi(t, "delete", "--force", id) })
			if how == "attended by its creator" {
				cmd := exec.Command(program(t), "run", "--bundle", bundle, id)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = cmd.Wait() }()
				waitFor(t, func() bool { return strings.Contains(psi(t, "state", id).stdout, "running") })
			} else {
				mustPsi(t, "run", "--detach", "--bundle", bundle, id)
			}
			checkEvents(t, id, policy)
		})
	}
}

// checkEvents reads the events of a deniedGuest.
func checkEvents(t *testing.T, id, policy string) {
	t.Helper()
	cmd := exec.Command(program(t), "events", "--interval", "1h", id)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	denials, told, kills := 0, 0, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e struct {
			Event, Guest string
			TS           float64
			Details      map[string]any
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || strings.ContainsFunc(lines.Text(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		switch e.Event {
		case "DENIED":
			denials += int(e.Details["suppressed"].(float64))
			if e.Details["kind"] != "suppressed" {
				denials++
				told++
			}
		case "MEM_KILL":
			kills++
		}
		if told == 1 && denials == 1 && e.Event == "DENIED" {
			firstDenial(t, lines.Text(), policy)
			mustPsi(t, "kill", id, "TERM")
		}
		if e.Event != "" && (e.Guest != id || e.TS == 0) {
			t.Errorf("%s", lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d denials told of by %d events", denials, told)
	if denials != 3001 || told < 20 || kills != 1 {
		t.Errorf("%d denials, %d of them one by one, %d kills", denials, told, kills)
	}
}

// firstDenial checks what is told of a denial, and that it says how to allow it.
func firstDenial(t *testing.T, line, policy string) {
	t.Helper()
	var e struct{ Details map[string]any }
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"kind": "net", "operation": "connect", "address": "127.0.0.1:9", "errno": "EPERM", "rule": nil, "command": "\x1b[2J\n\ufffd",
	} {
		if got, there := e.Details[key]; got != want || !there {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if pid, _ := e.Details["pid"].(float64); pid < 2 {
		t.Errorf("%s", line)
	}
	file := filepath.Join(t.TempDir(), "policy.yml")
	if err := os.WriteFile(file, []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	got := invoke(t, line, program(t), "policy", "explain", file, "-")
	if got.code != 0 || !strings.Contains(got.stdout, "127.0.0.1:9") {
		t.Errorf("policy explain: %+v", got)
	}
}
