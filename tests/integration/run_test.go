package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRunReturnsOutputAndExitCode(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(7)\n")
	got := psi(t, "run", "--bundle", bundle, newID(t))
	if got.code != 7 || got.stdout != "out\n" || !strings.Contains(got.stderr, "err\n") {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestRunTakesABundleDirectory(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "print(6 * 7)\n")
	if got := psi(t, "run", bundle+"/"); got.code != 0 || got.stdout != "42\n" {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestRunOfASignalledGuest(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "import os\npid = os.fork()\nif pid == 0:\n    os.kill(os.getpid(), 9)\n_, status = os.waitpid(pid, 0)\nprint(os.WTERMSIG(status), flush=True)\nos._exit(3)\n")
	if got := psi(t, "run", "--bundle", bundle, newID(t)); got.code != 3 || got.stdout != "9\n" {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

// The bundle of a policy is an ordinary OCI bundle: plain runc, which knows nothing of psi, runs it.
func TestPlainRuncRunsTheBundle(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "import os\nprint(os.getpid(), os.getuid())\n")
	got := invoke(t, "", "runc", "run", "--bundle", bundle, newID(t))
	if got.code != 0 || got.stdout != "1 0\n" {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestBundleIsAPureFunction(t *testing.T) {
	one, err := os.ReadFile(filepath.Join(bundleOf(t, "compute-only", "print(1)\n"), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(filepath.Join(bundleOf(t, "compute-only", "print(1)\n"), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if string(one) != string(two) {
		t.Errorf("two compilations differ:\n%s\n%s", one, two)
	}
}

func TestLifecycle(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "import time\ntime.sleep(600)\n")
	id := newID(t)
	t.Cleanup(func() { psi(t, "delete", "--force", id) })

	mustPsi(t, "create", "--bundle", bundle, id)
	if status := state(t, id)["status"]; status != "created" {
		t.Errorf("after create: status %v", status)
	}
	if got := psi(t, "create", "--bundle", bundle, id); got.code != 1 {
		t.Errorf("a second create of the same id: exit %d", got.code)
	}
	mustPsi(t, "start", id)
	if got := state(t, id); got["status"] != "running" || got["pid"].(float64) <= 0 {
		t.Errorf("after start: %v", got)
	}
	if got := psi(t, "delete", id); got.code != 1 {
		t.Errorf("delete of a running container: exit %d, stderr %q", got.code, got.stderr)
	}
	if list := mustPsi(t, "list", "-q"); !strings.Contains(list, id) {
		t.Errorf("list -q does not show %s: %q", id, list)
	}
	if got := mustPsi(t, "exec", id, "/usr/bin/python3", "-I", "-S", "-c", "print('inside')"); got != "inside\n" {
		t.Errorf("exec printed %q", got)
	}
	var pids []int
	if err := json.Unmarshal([]byte(mustPsi(t, "ps", "--format", "json", id)), &pids); err != nil || len(pids) != 1 {
		t.Errorf("ps: %v, %v", pids, err)
	}
	if stats := mustPsi(t, "events", "--stats", id); !strings.Contains(stats, `"type":"stats"`) {
		t.Errorf("events --stats printed %q", stats)
	}
	mustPsi(t, "kill", id, "KILL")
	waitFor(t, func() bool { return state(t, id)["status"] == "stopped" })
	mustPsi(t, "delete", id)
	if got := psi(t, "state", id); got.code != 1 || !strings.Contains(got.stderr, "does not exist") {
		t.Errorf("state of a deleted container: exit %d, stderr %q", got.code, got.stderr)
	}
	if got := psi(t, "delete", "--force", id); got.code != 0 {
		t.Errorf("delete --force of a missing container: exit %d", got.code)
	}
}

// Signals to a foreground run reach the guest, and it ends with the guest.
func TestRunForwardsSignals(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('ready', flush=True)\nwhile True: time.sleep(0.05)\n")
	cmd := exec.Command(program(t), "run", "--bundle", bundle, newID(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil || string(ready) != "ready\n" {
		t.Fatalf("read %q, %v", ready, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit %d, want the guest's 5", code)
	}
}

func TestPolicyOpensFilesAndNothingElse(t *testing.T) {
	watched(t)
	data := publicDir(t)
	for name, text := range map[string]string{"a.csv": "1,2\n", "b.txt": "secret\n", "sub/c.csv": "3\n"} {
		path := filepath.Join(data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil { // idmapped: the client's own 0600 files can be read
			t.Fatal(err)
		}
	}
	script := `
import os
base = ` + pyString(data) + `
print(open(base + "/a.csv").read(), end="")
for name in ("b.txt", "sub/c.csv"):
    try:
        print("read", open(os.path.join(base, name)).read())
    except OSError as error:
        print(type(error).__name__)
try:
    open(base + "/a.csv", "w")
except OSError as error:
    print("write:", type(error).__name__)
`
	got := psi(t, "run", "--bundle", bundleOf(t, "fs: ["+pyString(data+"/*.csv")+"]\n", script), newID(t))
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if got.code != 0 || len(lines) != 4 || lines[0] != "1,2" || lines[1] != "FileNotFoundError" || lines[2] != "FileNotFoundError" ||
		!strings.HasPrefix(lines[3], "write: ") {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestPolicyOpensOneEndpointAndNoOther(t *testing.T) {
	watched(t)
	listen := func() (net.Listener, string) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Write([]byte("hello from the host"))
				conn.Close()
			}
		}()
		return l, l.Addr().String()
	}
	_, allowed := listen()
	_, forbidden := listen()
	script := `
import socket
for address in (` + pyString(allowed) + `, ` + pyString(forbidden) + `):
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=20) as s:
            print(s.makefile().read())
    except OSError as error:
        print(type(error).__name__)
`
	got := psi(t, "run", "--bundle", bundleOf(t, "tcp: ["+pyString(allowed)+"]\n", script), newID(t))
	if got.code != 0 || got.stdout != "hello from the host\nPermissionError\n" {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

// A range of ports, and a wildcard whose name the guest asks psi for: both lead to the
// host's port, and the C library finds the name by what /etc/resolv.conf says.
func TestPolicyOpensRangesAndWildcards(t *testing.T) {
	watched(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("hello from the host"))
			conn.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	policy := fmt.Sprintf("net_bytes: 1000\ntcp: [\"127.0.0.1:%d-%d\", \"*.example.org:443\", {deny: \"secret.example.org:443\"}, {deny: \"127.0.0.1:%d\"}]\n",
		max(port-100, 1), min(port+100, 65535), port+1)
	script := `
import socket
def show(f):
    try:
        print(f())
    except OSError as error:
        print(type(error).__name__)
def reach(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        return s.makefile().read()
port = ` + strconv.Itoa(port) + `
show(lambda: reach(port))
show(lambda: reach(port + 1))
show(lambda: reach(port + 2))
show(lambda: reach(port + 200 if port < 65000 else port - 200))
show(lambda: socket.getaddrinfo("A.Example.ORG", 443, type=socket.SOCK_STREAM)[0][4][0].rpartition(".")[0])
show(lambda: socket.getaddrinfo("secret.example.org", 443))
show(lambda: socket.getaddrinfo("example.com", 443))
`
	got := psi(t, "run", "--bundle", bundleOf(t, policy, script), newID(t))
	want := "hello from the host\nPermissionError\nConnectionResetError\nPermissionError\n127.65.128\ngaierror\ngaierror\n"
	if got.code != 0 || got.stdout != want {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestPolicyOpensDatagrams(t *testing.T) {
	watched(t)
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(append([]byte("you said "), buf[:n]...), from)
		}
	}()
	port := c.LocalAddr().(*net.UDPAddr).Port
	script := `
import socket
def show(f):
    try:
        print(f())
    except OSError as error:
        print(type(error).__name__)
def ask(port, connect):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        if connect:
            s.connect(("127.0.0.1", port))
            s.send(b"hello")
        else:
            s.sendto(b"hello", ("127.0.0.1", port))
        return s.recv(100).decode()
def bound():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return "bound"
port = ` + strconv.Itoa(port) + `
show(lambda: ask(port, True))
show(lambda: ask(port, False))
show(lambda: ask(port - 1, True))
show(lambda: ask(port - 1, False))
show(bound)
show(lambda: socket.create_connection(("127.0.0.1", port)))
show(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
show(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1))
show(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
`
	got := psi(t, "run", "--bundle", bundleOf(t, fmt.Sprintf("udp: [\"127.0.0.1:%d\"]\n", port), script), newID(t))
	want := "you said hello\nyou said hello\n" + strings.Repeat("PermissionError\n", 7)
	if got.code != 0 || got.stdout != want {
		t.Errorf("got exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestLimits(t *testing.T) {
	watched(t)
	for _, test := range []struct{ name, policy, script, want string }{
		{"pids", "pids: 8\n", "import threading, time\ntry:\n    for n in range(50):\n        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\nexcept RuntimeError:\n    print('held')\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n", "held\n"},
		{"open_files", "open_files: 32\n", "try:\n    f = [open('/etc/passwd') for _ in range(100)]\nexcept OSError as e:\n    print('held')\n", "held\n"},
		{"tmp", "tmp: 1MiB\n", "try:\n    open('/tmp/x', 'wb').write(b'x' * (2 << 20))\nexcept OSError as e:\n    print('held')\n", "held\n"},
		{"mem", "mem: 64MiB\n", "x = []\nwhile True: x.append(b'x' * (1 << 20))\n", ""},
		{"cpu_ms", "cpu_ms: 1500\n", "while True: pass\n", ""},
		{"wall_ms", "wall_ms: 500\n", "import time\ntime.sleep(600)\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := psi(t, "run", "--bundle", bundleOf(t, test.policy, test.script), newID(t))
			if got.stdout != test.want {
				t.Errorf("stdout %q, want %q; stderr %q", got.stdout, test.want, got.stderr)
			}
			if test.want == "" && got.code != 137 {
				t.Errorf("exit %d, want 137 of a guest that was killed; stderr %q", got.code, got.stderr)
			}
		})
	}
}

// state parses `psi-runtime state`.
func state(t *testing.T, id string) map[string]any {
	t.Helper()
	var parsed map[string]any
	if err := json.Unmarshal([]byte(mustPsi(t, "state", id)), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the condition did not come to hold within a minute")
		}
	}
}

// pyString quotes text for Python, YAML and JSON alike.
func pyString(text string) string {
	quoted, _ := json.Marshal(text)
	return string(quoted)
}
