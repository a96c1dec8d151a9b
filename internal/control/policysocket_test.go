package control

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// As a child the test is a caller of a policy socket: see [callAs].
const callerVariable = "PSI_TEST_POLICY_CALLER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(callerVariable); dir != "" {
		err := AskForPolicy(dir, PolicyChange{Text: "{}"}, nil)
		fmt.Print(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// callAs asks as another process: what it says of the outcome.
func callAs(t *testing.T, dir string, attr *syscall.SysProcAttr) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{callerVariable + "=" + dir}
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// servePolicy answers with what is asked, and counts.
func servePolicy(t *testing.T) (dir string, asked func() int) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), strings.Repeat("longer-than-an-address/", 6))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	s, err := ServePolicy(dir, func(c PolicyChange) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		if c.Text == "bad" {
			return nil, fmt.Errorf("%w: bad", ErrPolicy)
		}
		return c, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := AskForPolicy(dir, PolicyChange{}, nil); !errors.Is(err, ErrUnattended) {
			t.Errorf("after the end: %v", err)
		}
	})
	return dir, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

func dialPolicy(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	var conn *net.UnixConn
	err := throughDirectory(dir, PolicySocket, func(path string) (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestPolicySocket(t *testing.T) {
	dir, asked := servePolicy(t)
	var back PolicyChange
	want := PolicyChange{Text: strings.Repeat("x", MaxFrame/2), Source: "a.yml", DryRun: true}
	if err := AskForPolicy(dir, want, &back); err != nil || back != want {
		t.Errorf("%v", err)
	}
	var refused *Refusal
	if err := AskForPolicy(dir, PolicyChange{Text: "bad"}, nil); !errors.As(err, &refused) || refused.Kind != KindPolicy || refused.Message != "policy: bad" {
		t.Errorf("%v", err)
	}
	if err := AskForPolicy(dir, PolicyChange{Text: strings.Repeat("x", MaxFrame)}, nil); err == nil {
		t.Error("a policy that is too large for a frame")
	}
	if asked() != 2 {
		t.Errorf("asked %d times", asked())
	}
	info, err := os.Stat(filepath.Join(dir, PolicySocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := AskForPolicy(link, PolicyChange{}, nil); err == nil {
		t.Error("a state directory that is a link")
	}
	if _, err := ServePolicy(link, nil); err == nil {
		t.Error("a state directory that is a link is served")
	}
	if err := os.Symlink("/etc/target", filepath.Join(filepath.Dir(dir), PolicySocket)); err != nil {
		t.Fatal(err)
	}
	if _, err := ServePolicy(filepath.Dir(dir), nil); err == nil {
		t.Error("a link in the socket's place")
	}
}

// Another user is refused though the socket can be reached; so is the host's root user in
// a container (a pid namespace below), where a mount has shown the socket.
func TestPolicySocketStrangers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it becomes other users")
	}
	dir, asked := servePolicy(t)
	// As a careless administrator may leave it.
	if err := os.Chmod(filepath.Join(dir, PolicySocket), 0o666); err != nil {
		t.Fatal(err)
	}
	for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(exe, 0o755); err != nil {
		t.Fatal(err)
	}
	if said := callAs(t, dir, nil); said != "<nil>" {
		t.Errorf("the same user: %s", said)
	}
	const refusedUser, refusedPlace = "not authorised: uid 65534 may not", "not authorised: the caller does not show that it is in the attendant's pid namespace"
	if said := callAs(t, dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}); !strings.HasPrefix(said, refusedUser) {
		t.Errorf("another user: %s", said)
	}
	for name, flags := range map[string]uintptr{"in a pid namespace": unix.CLONE_NEWPID, "in a container": unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS} {
		if said := callAs(t, dir, &syscall.SysProcAttr{Cloneflags: flags}); !strings.HasPrefix(said, refusedPlace) {
			t.Errorf("%s: %s", name, said)
		}
	}
	if asked() != 1 {
		t.Errorf("%d were asked", asked())
	}
}

// What is sent in the descriptor's place shows nothing.
func TestPolicySocketProof(t *testing.T) {
	dir, asked := servePolicy(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pids, err := os.Open(ownPIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer pids.Close()
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for name, files := range map[string][]*os.File{"none": nil, "a file": {null}, "another namespace": {mounts}, "two": {pids, pids}} {
		conn := dialPolicy(t, dir)
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		frame := AppendFrame(nil, []byte(`{"policy_text":"{}"}`))
		var rights []byte
		if fds != nil {
			rights = unix.UnixRights(fds...)
		}
		if _, _, err := conn.WriteMsgUnix(frame, rights, nil); err != nil {
			t.Fatal(err)
		}
		if answer, err := ReadFrame(conn); err != nil || !bytes.Contains(answer, []byte(`"kind":"auth"`)) {
			t.Errorf("%s: %s, %v", name, answer, err)
		}
	}
	if asked() != 0 {
		t.Errorf("%d were asked", asked())
	}
}

// Whatever is said, nothing but a whole request is handled, no memory is taken on a
// claim, and descriptors that nobody asked for are let go.
func TestPolicySocketGarbage(t *testing.T) {
	dir, asked := servePolicy(t)
	pids, err := os.Open(ownPIDs)
	if err != nil {
		t.Fatal(err)
	}
	defer pids.Close()
	huge := binary.BigEndian.AppendUint32(nil, 1<<32-1)
	for name, text := range map[string][]byte{
		"nonsense": bytes.Repeat([]byte("nonsense\n"), 1000), "a huge claim": huge, "half a header": {0, 0},
		"half a body": AppendFrame(nil, []byte(`{"policy_text":"{}"}`))[:10], "no JSON": AppendFrame(nil, []byte("x")),
		"another type": AppendFrame(nil, []byte(`{"policy_text":5}`)), "a list": AppendFrame(nil, []byte(`[]`)), "nothing in it": AppendFrame(nil, nil),
	} {
		conn := dialPolicy(t, dir)
		if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(int(pids.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if answer, err := ReadFrame(conn); err != nil || !bytes.Contains(answer, []byte(`"kind":"protocol"`)) {
			t.Errorf("%s: %s, %v", name, answer, err)
		}
	}
	before := openDescriptors(t)
	conn := dialPolicy(t, dir)
	if _, _, err := conn.WriteMsgUnix(AppendFrame(nil, make([]byte, 100))[:4], unix.UnixRights(int(pids.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	for range 100 { // beside the body: nobody takes them
		if _, _, err := conn.WriteMsgUnix([]byte("x"), unix.UnixRights(int(pids.Fd()), int(pids.Fd()), int(pids.Fd())), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadFrame(conn); err != nil {
		t.Error(err)
	}
	conn.Close()
	for deadline := time.Now().Add(10 * time.Second); openDescriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, there were %d", openDescriptors(t), before)
		}
	}
	if asked() != 0 {
		t.Errorf("%d were asked", asked())
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Callers that say nothing hold up nobody, take no more than is set, and go.
func TestPolicySocketCrowd(t *testing.T) {
	dir, _ := servePolicy(t)
	var crowd []*net.UnixConn
	for range 10 * maxStrangers {
		crowd = append(crowd, dialPolicy(t, dir))
	}
	if err := AskForPolicy(dir, PolicyChange{}, nil); err != nil {
		t.Error(err)
	}
	gone := 0
	for _, conn := range crowd[:len(crowd)-maxStrangers] {
		if _, err := conn.Read(make([]byte, 512)); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || err == nil {
			gone++
		}
	}
	if gone < 9*maxStrangers-1 {
		t.Errorf("%d of %d silent callers were sent away", gone, len(crowd))
	}
}

// A server that belongs to somebody else than the directory is not asked.
func TestPolicySocketImpostor(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it gives a directory away")
	}
	dir, asked := servePolicy(t)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := AskForPolicy(dir, PolicyChange{}, nil); err == nil || !strings.Contains(err.Error(), "uid 0 listens there") {
		t.Errorf("%v", err)
	}
	if asked() != 0 {
		t.Error("it was asked")
	}
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
}
