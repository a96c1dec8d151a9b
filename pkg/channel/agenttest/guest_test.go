// Package agenttest drives the guest agent, as a plain process at the other end
// of a socketpair, the way a host does. Confinement is not its subject.
package agenttest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/channel"
)

const patience = 20 * time.Second // on a loaded machine; tests that measure say their own

type guest struct {
	t      *testing.T
	cmd    *exec.Cmd
	conn   *os.File
	w      *channel.Writer
	r      *channel.Reader
	nextID uint32
	ready  channel.GuestReady
	ended  chan struct{} // closed when the process has been waited for
}

type config map[string]any

// python is the interpreter under test: Debian's, or $PSI_TEST_PYTHON.
func python() string {
	if path := os.Getenv("PSI_TEST_PYTHON"); path != "" {
		return path
	}
	return "/usr/bin/python3.11"
}

// start runs the agent with its channel on one socketpair.
func start(t *testing.T, c config) *guest {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "guest's end")
	defer theirs.Close()
	if err := unix.SetNonblock(ends[0], true); err != nil { // so that deadlines work
		t.Fatal(err)
	}
	return startOn(t, c, os.NewFile(uintptr(ends[0]), "host's end"), theirs, theirs)
}

func startOn(t *testing.T, c config, host, stdin, stdout *os.File) *guest {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python(), "-I", "-S", "../../../rootfs/agent/agent.py")
	cmd.Env = []string{"LANG=C.UTF-8", "PATH=/usr/bin:/bin"}
	if c != nil {
		cmd.Env = append(cmd.Env, "PSI_CONFIG="+string(text))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting Debian's Python (package python3): %v", err)
	}
	g := &guest{t: t, cmd: cmd, conn: host, ended: make(chan struct{})}
	go func() { cmd.Wait(); close(g.ended) }()
	t.Cleanup(func() {
		host.Close()
		cmd.Process.Kill()
		<-g.ended
	})
	g.w = channel.NewWriter(host)
	g.r = channel.NewReader(host, channel.FromGuest, 64<<20)
	ready, err := channel.ParseReady(g.frame(channel.Ready).Payload)
	if err != nil {
		t.Fatal(err)
	}
	g.ready = ready
	return g
}

func (g *guest) send(typ channel.Type, id uint32, payload []byte) {
	g.t.Helper()
	if err := g.w.Write(channel.Frame{Type: typ, ID: id, Payload: payload}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) exec(source string) uint32 {
	g.t.Helper()
	g.nextID++
	g.send(channel.Exec, g.nextID, []byte(source))
	return g.nextID
}

func (g *guest) call(name string, args ...any) uint32 {
	g.t.Helper()
	g.nextID++
	g.send(channel.Call, g.nextID, g.encode([]any{name, append([]any{}, args...), map[string]any{}}))
	return g.nextID
}

func (g *guest) post(value any) {
	g.t.Helper()
	g.send(channel.HostPost, 0, g.encode(value))
}

func (g *guest) encode(value any) []byte {
	g.t.Helper()
	payload, err := channel.Encode(value, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	return payload
}

func (g *guest) read() (channel.Frame, error) {
	g.conn.SetReadDeadline(time.Now().Add(patience))
	return g.r.Read()
}

// frame reads the next frame, which must be of this type.
func (g *guest) frame(want channel.Type) channel.Frame {
	g.t.Helper()
	f, err := g.read()
	if err != nil {
		g.t.Fatalf("waiting for a frame of type %d: %v", want, err)
	}
	if f.Type != want {
		g.t.Fatalf("got a frame of type %d, %.2000q; want type %d", f.Type, f.Payload, want)
	}
	return f
}

// posted reads the next frame, which must be this value.
func (g *guest) posted(want any) {
	g.t.Helper()
	g.isValue(g.frame(channel.GuestPost), want)
}

func (g *guest) isValue(f channel.Frame, want any) {
	g.t.Helper()
	got, err := channel.Decode(f.Payload, channel.DecodeOptions{})
	if err != nil || !reflect.DeepEqual(got, want) {
		g.t.Fatalf("got %#v, %v; want %#v", got, err, want)
	}
}

func (g *guest) done(id uint32) {
	g.t.Helper()
	if f := g.frame(channel.Done); f.ID != id {
		g.t.Fatalf("DONE of request %d, want %d", f.ID, id)
	}
}

func (g *guest) result(id uint32, want any) {
	g.t.Helper()
	f := g.frame(channel.Result)
	if f.ID != id {
		g.t.Fatalf("RESULT of request %d, want %d", f.ID, id)
	}
	g.isValue(f, want)
}

// failed reads the next frame, which must be this exception of this request.
func (g *guest) failed(id uint32, want string) *channel.GuestError {
	g.t.Helper()
	f := g.frame(channel.Error)
	found, err := channel.ParseError(f.Payload)
	if err != nil {
		g.t.Fatal(err)
	}
	if f.ID != id || found.Type != want {
		g.t.Fatalf("got %s of request %d (%s); want %s of %d", found.Type, f.ID, found.Message, want, id)
	}
	return found
}

// output reads stream frames until they make up want.
func (g *guest) output(typ channel.Type, want string) {
	g.t.Helper()
	var got strings.Builder
	for got.Len() < len(want) {
		got.Write(g.frame(typ).Payload)
	}
	if got.String() != want {
		g.t.Fatalf("output %q, want %q", got.String(), want)
	}
}

// exits waits for the end of the process and checks its exit status.
func (g *guest) exits(code int) {
	g.t.Helper()
	select {
	case <-g.ended:
	case <-time.After(patience):
		g.t.Fatal("the guest does not end")
	}
	if got := g.cmd.ProcessState.ExitCode(); got != code {
		g.t.Fatalf("exit status %d, want %d", got, code)
	}
}

// closed reads until the guest's end of the channel is closed.
func (g *guest) closed() {
	g.t.Helper()
	for {
		f, err := g.read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			g.t.Fatal(err)
		}
		g.t.Logf("before the end: a frame of type %d, %.80q", f.Type, f.Payload)
	}
}

func (g *guest) alive() {
	g.t.Helper()
	g.result(g.call("abs", -1), int64(1))
}

// busy waits until the guest has said that it is.
func (g *guest) busy(source string) uint32 {
	g.t.Helper()
	id := g.exec(fmt.Sprintf("post('busy')\n%s", source))
	g.posted("busy")
	time.Sleep(30 * time.Millisecond)
	return id
}

// statField is a number of /proc/PID/stat, counted from the state.
func statField(t *testing.T, pid, index int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))[index])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
