package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/control"
)

// hostDir makes a directory on the host that everybody may walk through.
func hostDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// put makes a file or, for content "/", a directory, with owner and mode.
func put(t *testing.T, path, content string, uid int, mode os.FileMode) string {
	t.Helper()
	var err error
	if content == "/" {
		err = os.Mkdir(path, mode)
	} else {
		err = os.WriteFile(path, []byte(content), mode)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err == nil {
		gid := 0
		if uid != 0 {
			gid = testGID
		}
		err = os.Lchown(path, uid, gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

const alice = 11111

func TestFilesOfRoot(t *testing.T) {
	_, c := embedded(t)
	dir := hostDir(t)
	put(t, dir+"/secret.txt", "of root", 0, 0o600)
	put(t, dir+"/out", "/", 0, 0o755)
	g := c.spawn(t, "reader", map[string]any{"fs": []any{dir + "/secret.txt", map[string]any{"write": dir + "/out/**"}}})
	if got := g.run(t, "post(open('"+dir+"/secret.txt').read())"); got != "of root" {
		t.Errorf("posted %s", got)
	}
	g.run(t, "open('"+dir+"/out/x', 'w').write('from the guest')")
	if data, err := os.ReadFile(dir + "/out/x"); err != nil || string(data) != "from the guest" {
		t.Errorf("on the host: %q, %v", data, err)
	}
	if _, err := g.exec("open('" + dir + "/secret.txt', 'a')"); err == nil || !strings.Contains(err.Error(), "OSError") && !strings.Contains(err.Error(), "PermissionError") {
		t.Errorf("a read rule let the guest write: %v", err)
	}
}

// What a client cannot read, its guests cannot read.
func TestFilesOfOthers(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	c := dialAs(t, socket, alice, gid)
	c.hello(t)
	dir := hostDir(t)
	put(t, dir+"/secret.txt", "of root", 0, 0o600)
	put(t, dir+"/closed", "/", 0, 0o700)
	put(t, dir+"/closed/readable.txt", "behind a door", 0, 0o644)
	put(t, dir+"/theirs.txt", "of alice", alice, 0o600)
	put(t, dir+"/public.txt", "of all", 0, 0o644)
	if err := os.Symlink(dir+"/secret.txt", dir+"/link.txt"); err != nil {
		t.Fatal(err)
	}
	for _, rule := range []any{
		dir + "/secret.txt", dir + "/link.txt", dir + "/closed", dir + "/closed/readable.txt", dir + "/closed/*.txt",
		map[string]any{"write": dir + "/public.txt"}, "/etc/shadow", "/root/.profile",
	} {
		a, err := c.ask(map[string]any{"op": "spawn", "name": "thief", "policy": map[string]any{"fs": []any{rule}}})
		if err == nil {
			g, readyErr := newTestGuest(a)
			if readyErr != nil {
				t.Fatal(readyErr)
			}
			got, err := g.exec("import os\nfor p in ('secret.txt', 'link.txt', 'closed/readable.txt'):\n try: post(open('" + dir + "/' + p).read())\n except OSError as e: pass")
			t.Errorf("%v was given to uid %d; the guest read %v, %v", rule, alice, got, err)
			_ = g.channel.Close()
			c.must(t, map[string]any{"op": "kill", "guest": g.id})
		} else if a.Error == nil || a.Error.Kind != control.KindPolicy {
			t.Errorf("%v: %v, want a policy error", rule, err)
		}
	}
	g := c.spawn(t, "owner", map[string]any{"fs": []any{map[string]any{"write": dir + "/theirs.txt"}, dir + "/public.txt"}})
	if got := g.run(t, "import os\npost(open('"+dir+"/theirs.txt').read()); post(open('"+dir+"/public.txt').read()); post(os.stat('"+dir+"/theirs.txt').st_uid)"); got != "of alice of all 0" {
		t.Errorf("posted %s", got)
	}
	g.run(t, "open('"+dir+"/theirs.txt', 'w').write('changed')")
	if data, _ := os.ReadFile(dir + "/theirs.txt"); string(data) != "changed" {
		t.Errorf("on the host: %q", data)
	}
}

// Somebody who owns a directory swaps a path between check and use, over and over.
func TestSwappedPath(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	c := dialAs(t, socket, alice, gid)
	c.hello(t)
	dir := hostDir(t)
	put(t, dir+"/secret", "/", 0, 0o700)
	put(t, dir+"/secret/data", "of root", 0, 0o644)
	mine := put(t, dir+"/mine", "/", alice, 0o755)
	put(t, mine+"/real", "/", alice, 0o755)
	put(t, mine+"/real/data", "of alice", alice, 0o644)
	path := mine + "/path"
	stop := make(chan struct{})
	defer func() { stop <- struct{}{} }()
	go func() {
		targets := []string{mine + "/real", dir + "/secret"}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Symlink(targets[i%2], path+"~")
			_ = os.Rename(path+"~", path)
		}
	}()
	given := 0
	tries := 40
	if scaled(1) > 1 {
		tries = 8
	}
	for range tries {
		a, err := c.ask(map[string]any{"op": "spawn", "name": "racer", "policy": map[string]any{"fs": []any{path}}})
		if err != nil {
			continue
		}
		given++
		g, err := newTestGuest(a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.exec("import os\nfor d, _, fs in os.walk('" + filepath.Dir(path) + "'):\n for f in fs: post(open(d + '/' + f).read())")
		if strings.Contains(strings.Join(got, ""), "of root") {
			t.Errorf("the guest read %v, %v", got, err)
		}
		_ = g.channel.Close()
		c.must(t, map[string]any{"op": "kill", "guest": g.id})
	}
	t.Logf("%d of %d spawns got the client's own directory", given, tries)
}

// No private mount of a view is visible anywhere once the guest runs.
func TestViewLeavesNoMount(t *testing.T) {
	s, c := embedded(t)
	dir := hostDir(t)
	put(t, dir+"/a", "x", 0, 0o644)
	c.spawn(t, "one", map[string]any{"fs": []any{dir + "/a"}})
	inner := childOf(t, s.cmd.Process.Pid)
	deadline := time.Now().Add(2 * time.Second)
	for {
		data, err := os.ReadFile(filepath.Join("/proc", itoa(inner), "mountinfo"))
		if err != nil {
			t.Fatal(err)
		}
		left := strings.Count(string(data), "psi-view") + strings.Count(string(data), "/views/")
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("mounts left in the supervisor:\n%s", data)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
