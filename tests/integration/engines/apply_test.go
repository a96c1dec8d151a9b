package engines

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// echo answers whatever comes, to any number of callers.
const echo = `
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", 8080), Echo)
print("serves", flush=True)
server.serve_forever()`

// talk keeps a connection to echo, says what becomes of it, and whether another one can be made.
const talk = `
import socket, time
s = socket.create_connection(("127.0.0.1", 8080), timeout=20)
n = 0
try:
    while True:
        s.sendall(b"x")
        if s.recv(1) != b"x":
            break
        n += 1
        print("talks", n, flush=True)
        time.sleep(0.1)
    print("ended", flush=True)
except OSError as error:
    print("cut", type(error).__name__, flush=True)
try:
    socket.create_connection(("127.0.0.1", 8080), timeout=20)
except OSError as error:
    print("again", type(error).__name__, flush=True)
time.sleep(600)`

// look prints what is in the files of a directory, and whether another one can be made.
const look = `
import os
D = %q
words = [open(D + "/" + name).read() for name in sorted(os.listdir(D))]
try:
    open(D + "/new", "w").close()
    os.unlink(D + "/new")
    words.append("writes")
except OSError as error:
    words.append(type(error).__name__)
print(*words)`

// applyPolicy gives a container another policy.
func applyPolicy(t *testing.T, id, document string, flags ...string) result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yml")
	if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	return command{built.runtime}.run(t, append([]string{"policy", "apply", id, file}, flags...)...)
}

// Another policy is applied to a container of podman's that runs: the connection that is
// now forbidden is cut, and no other in the same network; limits are lowered and given
// back, as far as podman has given them; what podman updates later counts.
func TestPodmanApply(t *testing.T) {
	leakcheck.Check(t)
	p := newPodman(t)
	psi := command{built.runtime}
	p.must(t, "load", "-q", "-i", archive(t, built.pause))
	parent := p.flags[3]
	pod := p.must(t, "pod", "create", "--network", "none", "--cgroup-parent", parent, "--infra-image", pauseImage, "--infra-command", "/pause", "--share", "net")
	run := func(script string, flags ...string) (id string) {
		t.Helper()
		args := append([]string{"run", "-d", "--pod", pod, "--cgroup-parent", parent, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, flags...)
		return p.must(t, append(args, "--entrypoint", `["/usr/bin/python3","-I","-S","-c"]`, pythonImage, script)...)
	}
	says := func(id, what string) {
		t.Helper()
		waitFor(t, what, func() bool { return strings.Contains(p.must(t, "logs", id), what) })
	}
	apply := func(id, document string, flags ...string) result { return applyPolicy(t, id, document, flags...) }
	memory := func(id, want string) {
		t.Helper()
		p.run(t, append([]string{"exec", id}, python(memoryLimit)...)...).expect(t, 0, want+"\n")
	}
	says(run(echo), "serves")
	volume := tempDir(t)
	for _, name := range []string{"file", "secret"} {
		if err := os.WriteFile(filepath.Join(volume, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	held := run(talk, "--memory", "128m", "--volume", volume+":"+volume,
		"--annotation", `"io.psi.policy={mem: 64MiB, tcp: [""127.0.0.1:8080""], fs: [{write: `+volume+`}]}"`)
	free := run(talk, "--memory", "128m", "--annotation", `"io.psi.policy={mem: 64MiB, tcp: [""127.0.0.1:8080""]}"`)
	says(held, "talks 3\n")
	says(free, "talks 3\n")
	memory(held, "67108864")

	// What it sees of its volume changes both ways, and the rest goes on.
	sees := func(want string) {
		t.Helper()
		p.run(t, append([]string{"exec", held}, python(fmt.Sprintf(look, volume))...)...).expect(t, 0, want+"\n")
	}
	files := func(rules string) {
		t.Helper()
		apply(held, "{mem: 64MiB, tcp: ['127.0.0.1:8080'], fs: ["+strings.ReplaceAll(rules, "VOLUME", volume)+"]}").expect(t, 0, "")
	}
	sees("file secret writes")
	files("{read: VOLUME}, {deny: VOLUME/secret}")
	sees("file  OSError")
	files("")
	sees("OSError")
	files("{write: VOLUME}")
	sees("file secret writes")

	apply(held, "mem: 1GiB", "--dry-run").expect(t, 0, "- tcp  connect  127.0.0.1:8080")
	apply(held, "tcp: ['db.example.org:5432']").expect(t, 1, "")
	memory(held, "67108864")
	before := strings.Count(p.must(t, "logs", held), "talks")
	waitFor(t, "the connection to go on", func() bool { return strings.Count(p.must(t, "logs", held), "talks") > before })

	apply(held, "mem: 1GiB").expect(t, 0, "")
	says(held, "cut Connection")
	says(held, "again PermissionError")
	memory(held, "134217728")
	before = strings.Count(p.must(t, "logs", free), "talks")
	waitFor(t, "the other container's connection to go on", func() bool { return strings.Count(p.must(t, "logs", free), "talks") > before })

	apply(held, "{mem: 32MiB, tcp: ['127.0.0.1:8080']}").expect(t, 0, "")
	memory(held, "33554432")
	p.run(t, append([]string{"exec", held}, python("import socket; socket.create_connection(('127.0.0.1', 8080)); print('connected')")...)...).expect(t, 0, "connected")
	p.must(t, "update", "--memory", "100m", held)
	memory(held, "33554432")
	apply(held, "mem: 1GiB").expect(t, 0, "")
	memory(held, "104857600")
	p.must(t, "pause", held)
	apply(held, "mem: 48MiB").expect(t, 0, "")
	if status := p.must(t, "inspect", "--format", "{{.State.Status}}", held); status != "paused" {
		t.Errorf("a reload left a paused container %s", status)
	}
	p.must(t, "unpause", held)
	memory(held, "50331648")

	events := psi.run(t, "events", "--stats", held)
	events.expect(t, 0, `"type":"stats"`)
	p.must(t, "stop", "--time", "0", held)
	if got := apply(held, "mem: 64MiB"); got.code != 2 || !strings.Contains(got.stderr, "has ended") && !strings.Contains(got.stderr, "no such container") {
		t.Errorf("a container that has ended: %+v", got)
	}
	p.must(t, "pod", "rm", "--force", "--time", "0", pod)
}
