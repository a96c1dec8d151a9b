package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
)

const testGroup, testGID = "nogroup", 65534

// sharedSocket is where a test's shared supervisor listens, and the group it is for.
func sharedSocket(t *testing.T) (path string, gid int) {
	return filepath.Join(newRunDir(t), "psi.sock"), testGID
}

// startShared starts a shared supervisor and waits until it listens.
func startShared(t *testing.T, socket string) *shim {
	t.Helper()
	s := startShim(t, Config{RunDir: filepath.Dir(socket), Socket: socket, Group: testGroup}, nil)
	for range 1000 {
		if info, err := os.Stat(socket); err == nil && info.Mode().Perm() == 0o660 {
			return s
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("no supervisor listens: %s", s.log)
	return nil
}

// dialAs connects as another user: the credentials of a connection are those of the
// thread that makes it.
func dialAs(t *testing.T, socket string, uid, gid int) *testClient {
	t.Helper()
	c, err := tryDialAs(t, socket, uid, gid)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryDialAs(t *testing.T, socket string, uid, gid int) (*testClient, error) {
	type result struct {
		file *os.File
		err  error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				results <- result{nil, errno}
				return
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		results <- result{os.NewFile(uintptr(fd), "control"), err}
	}()
	r := <-results
	if r.err != nil {
		return nil, r.err
	}
	return newTestClient(t, r.file), nil
}

func TestSocketIsForItsGroup(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	if _, err := tryDialAs(t, socket, 54321, 54321); !errors.Is(err, unix.EACCES) {
		t.Errorf("a stranger connected: %v", err)
	}
	dialAs(t, socket, 54321, gid).hello(t)
}

func TestOneSupervisorPerSocket(t *testing.T) {
	socket, gid := sharedSocket(t)
	s := startShared(t, socket)
	second := startShim(t, Config{RunDir: s.runDir, Socket: socket, Group: testGroup}, nil)
	if !second.gone(10*time.Second) || !strings.Contains(second.log.String(), "another supervisor serves it") {
		t.Errorf("a second supervisor on one socket: %s", second.log)
	}
	dialAs(t, socket, 0, gid).hello(t)
}

// A socket that a crash left is replaced.
func TestSocketAfterCrash(t *testing.T) {
	socket, gid := sharedSocket(t)
	s := startShared(t, socket)
	_ = s.cmd.Process.Kill()
	s.gone(scaled(5 * time.Second))
	if err := os.Chmod(socket, 0); err != nil { // so that startShared sees the new one
		t.Fatal(err)
	}
	startShared(t, socket)
	dialAs(t, socket, 0, gid).hello(t)
}

func TestUnknownGroup(t *testing.T) {
	socket, _ := sharedSocket(t)
	s := startShim(t, Config{RunDir: filepath.Dir(socket), Socket: socket, Group: "psi-no-such-group"}, nil)
	if !s.gone(10*time.Second) || s.cmd.ProcessState.Success() || !strings.Contains(s.log.String(), "groupadd --system psi-no-such-group") {
		t.Errorf("log: %s", s.log)
	}
}

func TestUsersDoNotSeeEachOther(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	alice, bob, root := dialAs(t, socket, 11111, gid), dialAs(t, socket, 22222, gid), dialAs(t, socket, 0, gid)
	alice.hello(t)
	root.must(t, map[string]any{"op": "hello", "version": 2, "watch": true})
	bob.must(t, map[string]any{"op": "hello", "version": 2, "watch": true})
	g := alice.spawn(t, "secret", nil)
	for _, other := range []*testClient{bob, root} {
		if list := string(other.must(t, map[string]any{"op": "list"}).OK); list != `{"guests":[]}` {
			t.Errorf("list: %s", list)
		}
		for _, op := range []string{"close", "kill", "stats", "reload", "report"} {
			if op == "reload" && other == root {
				continue // root may: TestReloadIsForTheOwner
			}
			request := map[string]any{"op": op, "guest": g.id}
			none := map[string]any{"op": op, "guest": "psi-0000000000000000"}
			if op == "report" {
				request["error"], none["error"] = "x", "x"
			}
			a, err := other.ask(request)
			_, noneErr := other.ask(none)
			if err == nil || strings.ReplaceAll(err.Error(), g.id, "ID") != strings.ReplaceAll(noneErr.Error(), "psi-0000000000000000", "ID") {
				t.Errorf("%s on somebody else's guest: %v %v; on none: %v", op, a, err, noneErr)
			}
		}
	}
	if got := g.run(t, "post(1)"); got != "1" {
		t.Errorf("posted %s", got)
	}
	alice.must(t, map[string]any{"op": "close", "guest": g.id})
	for _, other := range []*testClient{bob, root} {
		if len(other.pushed) > 0 {
			t.Errorf("somebody else was told %v", <-other.pushed)
		}
	}
	// Names are unique per client, not per machine.
	bob.spawn(t, "secret", nil)
}

// A client that is not root cannot choose the files that become a guest's root.
func TestRootfsOfOthers(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	c := dialAs(t, socket, 11111, gid)
	c.hello(t)
	c.refused(t, control.KindSandbox, "may only use this supervisor's own", map[string]any{"op": "spawn", "name": "a", "rootfs": "/root"})
	a := c.must(t, map[string]any{"op": "spawn", "name": "b", "rootfs": testRoot})
	if g, err := newTestGuest(a); err != nil {
		t.Error(err)
	} else {
		g.channel.Close()
	}
}

func TestConnectionsPerUser(t *testing.T) {
	socket, gid := sharedSocket(t)
	startShared(t, socket)
	var all []*testClient
	for i := range maxClients {
		c := dialAs(t, socket, 11111, gid)
		if _, err := c.ask(map[string]any{"op": "hello", "version": 2}); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		all = append(all, c)
	}
	one := dialAs(t, socket, 11111, gid)
	if _, err := one.ask(map[string]any{"op": "hello", "version": 2}); err == nil {
		t.Errorf("connection %d was served", maxClients+1)
	}
	dialAs(t, socket, 22222, gid).hello(t)
	for _, c := range all {
		_ = c.conn.Close()
	}
}
