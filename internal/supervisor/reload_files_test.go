package supervisor

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/enforce"
)

// reload puts a policy into force in a guest and waits for the event.
func (c *testClient) reload(t *testing.T, g *testGuest, policy map[string]any) {
	t.Helper()
	c.must(t, map[string]any{"op": "reload", "guest": g.id, "policy": policy})
	if ev := c.event(t, control.Hotload, scaled(5*time.Second)); ev["guest"] != g.id {
		t.Errorf("event: %v", ev)
	}
}

// reading says what a guest finds in a file: its content, or the error.
func reading(path string) string {
	return "try: post(open('" + path + "').read())\nexcept OSError as e: post(type(e).__name__)"
}

func writing(path string) string {
	return "try: post(open('" + path + "', 'w').write('x'))\nexcept OSError as e: post(type(e).__name__)"
}

// kernelDecides reports whether LSM programs hold file rules here. What is refused is
// then there, and a pattern is live.
func kernelDecides() bool {
	files, err := enforce.LoadFiles()
	return err == nil && files.Close() == nil
}

func isRefusal(answer string) bool { return strings.HasSuffix(answer, "Error") }

func TestReloadFiles(t *testing.T) {
	_, c := embedded(t)
	dir := hostDir(t)
	put(t, dir+"/a.txt", "a", 0, 0o600)
	put(t, dir+"/b.txt", "b", 0, 0o600)
	put(t, dir+"/out", "/", 0, 0o755)
	g := c.spawn(t, "reader", nil)
	steps := []struct {
		rules             []any
		a, b, out, aWrite string
	}{
		{[]any{dir + "/a.txt"}, "a", "FileNotFoundError", "FileNotFoundError", "OSError"},
		{[]any{dir}, "a", "b", "OSError", "OSError"},
		{[]any{dir, map[string]any{"write": dir + "/out"}}, "a", "b", "1", "OSError"},
		{[]any{map[string]any{"write": dir + "/out"}}, "FileNotFoundError", "FileNotFoundError", "1", "OSError"},
		{[]any{dir + "/*.txt"}, "a", "b", "FileNotFoundError", "OSError"},
		{[]any{dir, map[string]any{"deny": dir + "/a.txt"}}, "FileNotFoundError", "b", "OSError", "OSError"},
		{[]any{}, "FileNotFoundError", "FileNotFoundError", "FileNotFoundError", "OSError"},
	}
	for _, step := range steps {
		c.reload(t, g, map[string]any{"fs": step.rules})
		for source, want := range map[string]string{
			reading(dir + "/a.txt"): step.a, reading(dir + "/b.txt"): step.b, writing(dir + "/out/x"): step.out,
		} {
			if got := g.run(t, source); got != want && (!kernelDecides() || !isRefusal(got) || !isRefusal(want)) {
				t.Errorf("%v: %s: %s, want %s", step.rules, source, got, want)
			}
		}
		if got := g.run(t, writing(dir+"/a.txt")); got == "1" {
			t.Errorf("%v: a file that may only be read was written", step.rules)
		}
	}
	// What comes to match later is shown when the same policy is loaded again.
	glob := map[string]any{"fs": []any{dir + "/*.txt"}}
	c.reload(t, g, glob)
	put(t, dir+"/late.txt", "late", 0, 0o600)
	if got := g.run(t, reading(dir+"/late.txt")); (got == "late") != kernelDecides() {
		t.Errorf("before the refresh: %s", got)
	}
	c.reload(t, g, glob)
	if got := g.run(t, reading(dir+"/late.txt")); got != "late" {
		t.Errorf("after the refresh: %s", got)
	}
}

// A guest that holds on to what is to be taken from it, in whatever way, makes the
// reload fail; nothing has changed then, and no other guest of the reload has either.
func TestReloadOfWhatIsHeld(t *testing.T) {
	_, c := embedded(t)
	dir := hostDir(t)
	put(t, dir+"/a.txt", "a", 0, 0o600)
	address, port := echoServer(t)
	old := map[string]any{"fs": []any{dir}, "tcp": []any{address}, "mem": "64MiB"}
	holder, other := c.spawn(t, "holder", old), c.spawn(t, "other", old)
	for hold, release := range map[string]string{
		"f = open('" + dir + "/a.txt')":                                                                     "f.close()",
		"import os; fd = os.open('" + dir + "', os.O_PATH)":                                                 "os.close(fd)",
		"import mmap; f = open('" + dir + "/a.txt', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()": "m.close()",
		"import os; os.chdir('" + dir + "')":                                                                "os.chdir('/')",
		// In flight, where no list of open files shows it.
		"import os, socket, array\na, b = socket.socketpair()\nfd = os.open('" + dir + "', os.O_RDONLY)\na.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])\nos.close(fd)": "a.close(); b.close()",
	} {
		if _, err := holder.exec(hold); err != nil {
			t.Fatalf("%s: %v", hold, err)
		}
		drain(c)
		c.refused(t, control.KindPolicy, "open", map[string]any{
			"op": "reload", "guests": []any{holder.id, other.id}, "policy": map[string]any{"mem": "128MiB"},
		})
		for _, g := range []*testGuest{holder, other} {
			if got := g.run(t, reading(dir+"/a.txt")+"\n"+connect("127.0.0.1", port)); got != "a pong" {
				t.Errorf("%s: after a reload that failed: %s", hold, got)
			}
		}
		for len(c.pushed) > 0 {
			if ev := <-c.pushed; ev["event"] == control.Hotload {
				t.Errorf("%s: told of a reload that failed: %v", hold, ev)
			}
		}
		holder.run(t, release)
	}
	c.must(t, map[string]any{"op": "reload", "guests": []any{holder.id, other.id}, "policy": map[string]any{"mem": "128MiB"}})
	for range 2 {
		c.event(t, control.Hotload, scaled(5*time.Second))
	}
	for _, g := range []*testGuest{holder, other} {
		if got := g.run(t, reading(dir+"/a.txt")); got != "FileNotFoundError" {
			t.Errorf("after the reload: %s", got)
		}
	}
}

// Connections that the new policy forbids end, others go on.
func TestReloadCutsConnections(t *testing.T) {
	_, c := embedded(t)
	keep, cut := chatServer(t), chatServer(t)
	g := c.spawn(t, "talker", map[string]any{"tcp": []any{keep, cut}})
	host := func(address string) string { return strings.Replace(address, ":", "', ", 1) }
	g.run(t, "import socket\nkeep = socket.create_connection(('"+host(keep)+"), 5); cut = socket.create_connection(('"+host(cut)+"), 5)\n"+
		"for s in keep, cut: s.sendall(b'a'); s.recv(1)")
	c.reload(t, g, map[string]any{"tcp": []any{keep}})
	got := g.run(t, "keep.sendall(b'b'); post(keep.recv(1).decode())\ntry: cut.sendall(b'b'); post(len(cut.recv(1)))\nexcept OSError as e: post(type(e).__name__)")
	if got != "b ConnectionResetError" && got != "b BrokenPipeError" {
		t.Errorf("after the reload: %s", got)
	}
}

// A list becomes narrower and wider, but never wider than spawn's allowed_imports.
func TestReloadImports(t *testing.T) {
	_, c := embedded(t)
	a := c.must(t, map[string]any{
		"op": "spawn", "name": "importer", "policy": map[string]any{"imports": []any{"math", "json", "csv", "string"}}, "allowed_imports": []any{"math", "json", "csv"},
	})
	g, err := newTestGuest(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.close(t) })
	importing := "for name in 'math', 'json', 'csv', 'string':\n try: __import__(name); post(name)\n except ImportError: pass"
	for _, step := range []struct {
		imports any
		want    string
	}{
		{[]any{"math"}, "math"},
		{[]any{"json", "string"}, "json"}, // what spawn's allowed_imports left out stays out
		{[]any{}, ""},
		{[]any{"math", "json", "csv"}, "math json csv"},
	} {
		c.reload(t, g, map[string]any{"imports": step.imports})
		if got := g.run(t, importing); got != step.want {
			t.Errorf("imports %v: %q, want %q", step.imports, got, step.want)
		}
	}
}

// A directory that a guest holds would show it what is mounted over: it keeps its list then. Files
// that it has open are its own.
func TestReloadImportsOfWhatIsHeld(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "keeper", map[string]any{"imports": []any{"posix", "csv", "_socket"}})
	next := map[string]any{"imports": []any{"posix", "_socket"}}
	const library = "import posix, _socket; d = posix.open('/usr/lib/python3.11/csv.py', 0); library = posix.open('/usr/lib/python3.11', posix.O_PATH); post(1)"
	const open = "try: posix.close(posix.open('csv.py', 0, dir_fd=library)); post('open')\nexcept OSError as e: post(type(e).__name__)"
	g.run(t, library)
	refused := func(want string) {
		t.Helper()
		c.refused(t, control.KindPolicy, want, map[string]any{"op": "reload", "guest": g.id, "policy": next})
	}
	refused("has the directory \"/usr/lib/python3.11\", of which files are hidden: have it close that")
	if got := g.run(t, open); got != "open" {
		t.Errorf("after a reload that failed: %s", got)
	}
	g.run(t, "a, b = _socket.socketpair(); a.sendmsg([b'x'], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, library.to_bytes(4, 'little'))]); posix.close(library); post(1)")
	refused("has a socket in which 1 descriptors are under way")
	g.run(t, "a.close(); b.close(); post(1)")
	c.reload(t, g, next)
	if got := g.run(t, "post(len(posix.read(d, 10)))\ntry: posix.open('/usr/lib/python3.11/csv.py', 0)\nexcept OSError as e: post(type(e).__name__)"); got != "10 FileNotFoundError" {
		t.Errorf("after one that did not: %s", got)
	}
}

func TestReloadNames(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "caller", map[string]any{"tcp": []any{"a.example:80"}})
	hosts := "post([l.split() for l in open('/etc/hosts') if 'example' in l])"
	before := g.run(t, hosts)
	c.reload(t, g, map[string]any{"tcp": []any{"a.example:80", "b.example:80"}})
	after := g.run(t, hosts)
	if !strings.HasPrefix(after, strings.TrimSuffix(before, "]")) || !strings.Contains(after, "b.example") {
		t.Errorf("hosts: %s, then %s", before, after)
	}
	// The new name is one of the proxy's: a connection is made, and refused by what it resolves to.
	got := g.run(t, "import socket\ntry: socket.create_connection(('b.example', 80), 5).recv(1)\nexcept OSError as e: post(type(e).__name__)")
	if got != "ConnectionResetError" {
		t.Errorf("a new name: %s", got)
	}
}

// A name that a reload brought which was taken back is told by the next one that brings it.
func TestReloadNamesAfterOneThatFailed(t *testing.T) {
	_, c := embedded(t)
	g, other := c.spawn(t, "caller", nil), c.spawn(t, "other", nil)
	other.run(t, "b = bytearray(100 << 20); post(1)")
	next := map[string]any{"tcp": []any{"a.example:80"}, "mem": "32MiB"}
	if _, err := c.ask(map[string]any{"op": "reload", "guests": []any{g.id, other.id}, "policy": next}); err == nil {
		t.Fatal("memory that is in use was taken away")
	}
	hosts := "post([l.split()[1] for l in open('/etc/hosts') if 'example' in l])"
	if got := g.run(t, hosts); got != "[]" {
		t.Errorf("after a reload that failed: %s", got)
	}
	c.reload(t, g, next)
	if got := g.run(t, hosts); got != "[a.example]" {
		t.Errorf("after one that did not: %s", got)
	}
}

func TestReloadDryRun(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "dry", map[string]any{"tcp": []any{"10.0.0.1:80"}, "mem": "64MiB"})
	drain(c)
	next := map[string]any{"tcp": []any{"10.0.0.2:80"}, "mem": "32MiB", "fs": []any{"/usr/share/common-licenses"}}
	a := c.must(t, map[string]any{"op": "reload", "guest": g.id, "policy": next, "dry_run": true})
	var reply struct {
		Changes []struct {
			Guest            string
			Permits, Forbids []struct{ Key, Permits, Example string }
		}
	}
	if err := json.Unmarshal(a.OK, &reply); err != nil || len(reply.Changes) != 1 || reply.Changes[0].Guest != g.id {
		t.Fatalf("%s (%v)", a.OK, err)
	}
	change := reply.Changes[0]
	if len(change.Permits) != 2 || change.Permits[0].Key != "fs" || change.Permits[1].Example != "10.0.0.2:80" {
		t.Errorf("permits %v", change.Permits)
	}
	if len(change.Forbids) != 2 || change.Forbids[0].Key != "mem" || change.Forbids[1].Example != "10.0.0.1:80" {
		t.Errorf("forbids %v", change.Forbids)
	}
	if got := g.run(t, reading("/usr/share/common-licenses/GPL-3")); got != "FileNotFoundError" {
		t.Errorf("a dry run changed what the guest sees: %.20s", got)
	}
	for len(c.pushed) > 0 {
		if ev := <-c.pushed; ev["event"] == control.Hotload {
			t.Errorf("told of a dry run: %v", ev)
		}
	}
	c.refused(t, control.KindPolicy, "preload", map[string]any{"op": "reload", "guest": g.id, "policy": map[string]any{"preload": []any{"math"}}, "dry_run": true})
}

// Forged requests: another uid's, without the token or with a wrong one.
func TestReloadIsForTheOwner(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	owner, again := dialAs(t, socket, alice, gid), dialAs(t, socket, alice, gid)
	stranger, root := dialAs(t, socket, alice+1, gid), dialAs(t, socket, 0, 0)
	for _, c := range []*testClient{owner, again, stranger, root} {
		c.hello(t)
	}
	g := owner.spawn(t, "mine", nil)
	reload := func(more map[string]any) map[string]any {
		r := map[string]any{"op": "reload", "guest": g.id, "policy": map[string]any{"pids": 50}}
		for key, value := range more {
			r[key] = value
		}
		return r
	}
	stranger.refused(t, control.KindAuth, "may change no guest", reload(nil))
	stranger.refused(t, control.KindAuth, "may change no guest", reload(map[string]any{"dry_run": true}))
	stranger.refused(t, control.KindAuth, "may change no guest", map[string]any{"op": "reload", "guest": "psi-0000000000000000"})
	stranger.refused(t, control.KindSandbox, "no guest", map[string]any{"op": "kill", "guest": g.id})
	again.must(t, reload(nil))
	root.must(t, reload(nil))
	owner.refused(t, control.KindAuth, "leave it out", reload(map[string]any{"token": "anything"}))

	token := "0123456789abcdef"
	owner.refused(t, control.KindPolicy, "at least 16", map[string]any{"op": "protect", "token": "short"})
	owner.must(t, map[string]any{"op": "protect", "token": token})
	owner.must(t, map[string]any{"op": "protect", "token": token})
	owner.refused(t, control.KindAuth, "another token", map[string]any{"op": "protect", "token": token + "x"})
	again.must(t, map[string]any{"op": "protect", "token": token + "x"}) // its own guests', not these
	for _, c := range []*testClient{owner, again, root} {
		c.refused(t, control.KindAuth, "give it", reload(nil))
		c.refused(t, control.KindAuth, "not the one", reload(map[string]any{"token": token + "x"}))
		c.refused(t, control.KindAuth, "not the one", reload(map[string]any{"token": token[:15], "dry_run": true}))
		c.must(t, reload(map[string]any{"token": token}))
	}
	// A list with one guest that is not the client's is refused as a whole.
	h := stranger.spawn(t, "theirs", nil)
	stranger.refused(t, control.KindAuth, g.id, map[string]any{"op": "reload", "guests": []any{h.id, g.id}, "policy": map[string]any{"pids": 50}})
}

// Lists that follow each other take the place of what the one before has put over the modules.
func TestReloadImportsOverAndOver(t *testing.T) {
	_, c := embedded(t)
	g := c.spawn(t, "often", map[string]any{"imports": []any{"posix", "csv", "json"}})
	const look = `
kept.append(posix.open("/usr/lib/python3.11/types.py", posix.O_RDONLY))
with open("/proc/self/mountinfo") as f: post(len(f.readlines()))
post(all(posix.read(fd, 10) for fd in kept))
for fd in kept: posix.lseek(fd, 0, 0)
`
	g.run(t, "import posix; kept = []")
	var first string
	for n := range 6 {
		c.reload(t, g, map[string]any{"imports": []any{"posix", []string{"csv", "json", "posix"}[n%3]}})
		switch got := g.run(t, look); {
		case n == 0:
			first = got
		case got != first:
			t.Errorf("mounts, and whether what was kept can be read: %s after %d changes, %s after the first", got, n+1, first)
		}
	}
}
