package bridge

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/leakcheck"
	"github.com/psi-runtime/psi/pkg/channel"
	"github.com/psi-runtime/psi/pkg/policy"
)

// deaf is a guest that hears neither the end of its channel nor SIGTERM. (In a post,
// outside a try, it would.)
const deaf = `
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
said = False
while True:
    try:
        if not said:
            said = True
            post(1)
        time.sleep(1)
    except BaseException:
        pass
`

// relayed is a guest between two pipes.
type relayed struct {
	t    *testing.T
	in   *io.PipeWriter
	to   *channel.Writer
	from *channel.Reader
	done chan struct{}
	code int
	err  error
}

func relay(t *testing.T, p *policy.Policy, words ...string) *relayed {
	t.Helper()
	stdin, in := io.Pipe()
	out, stdout := io.Pipe()
	r := &relayed{t: t, in: in, to: channel.NewWriter(in), from: channel.NewReader(out, channel.FromGuest, 1<<20), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer stdout.Close()
		r.code, r.err = Relay(t.Context(), RelayOptions{Options: options(words...), Policy: p, Grace: 500 * time.Millisecond, Stdin: stdin, Stdout: stdout})
		stdin.Close()
	}()
	t.Cleanup(func() {
		in.Close()
		go io.Copy(io.Discard, out)
		<-r.done
	})
	return r
}

// next is the next frame of a kind; others are passed over.
func (r *relayed) next(kind channel.Type) channel.Frame {
	r.t.Helper()
	for {
		f, err := r.from.Read()
		if err != nil {
			<-r.done
			r.t.Fatalf("waiting for a frame of type %d: %v (bridge: %d, %v)", kind, err, r.code, r.err)
		}
		if f.Type == kind {
			return f
		}
	}
}

func (r *relayed) exec(source string) {
	r.t.Helper()
	if err := r.to.Write(channel.Frame{Type: channel.Exec, ID: 1, Payload: []byte(source)}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *relayed) end() (int, error) {
	r.t.Helper()
	go func() {
		for {
			if _, err := r.from.Read(); err != nil {
				return
			}
		}
	}()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		r.t.Fatal("the relay has not ended")
	}
	return r.code, r.err
}

func TestRelayCarriesFramesAndTheExitCode(t *testing.T) {
	words := runCommand(t)
	leakcheck.Check(t)
	p := mustParse(t, `{"mem": "64MiB", "open_files": 99}`)
	r := relay(t, &p, words...)
	r.next(channel.Ready)
	r.exec("import os, resource; post(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); post(os.getuid()); post('x' * 300000)")
	for _, want := range []string{"J99", "J65532", "S" + strings.Repeat("x", 300000)} {
		if f := r.next(channel.GuestPost); string(f.Payload) != want {
			t.Errorf("got %.80q, want %.80q", f.Payload, want)
		}
	}
	r.next(channel.Done)
	if err := r.to.Write(channel.Frame{Type: channel.Exec, ID: 2, Payload: []byte("os._exit(7)")}); err != nil {
		t.Fatal(err)
	}
	if code, err := r.end(); code != 7 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	nothingRuns(t)
}

func TestRelayEndsWithItsClient(t *testing.T) {
	words := runCommand(t, nofile)
	leakcheck.Check(t)
	r := relay(t, nil, words...)
	r.next(channel.Ready)
	r.exec(deaf)
	r.next(channel.GuestPost)
	r.in.Close()
	if code, err := r.end(); code != 0 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	nothingRuns(t)
}

func TestRelayEndsAGuestThatBreaksTheRules(t *testing.T) {
	words := runCommand(t, nofile)
	leakcheck.Check(t)
	for attack, says := range map[string]string{
		`b"\xff" * 64`: "reserved",
		`struct.pack("!IBBHI", 1 << 31, 20, 0, 0, 0)`: "2147483648 bytes",
		`struct.pack("!IBBHI", 0, 1, 0, 0, 1)`:        "unknown frame type 1",
	} {
		r := relay(t, nil, words...)
		r.next(channel.Ready)
		r.exec(`
import fcntl, os, stat, struct, time
def pipes(mode):
    for fd in range(1024):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == mode:
                yield os.fstat(fd).st_ino, fd
        except OSError:
            pass
own = dict(pipes(os.O_RDONLY)) # captured output, and the agent's pipe to itself
channel = [fd for inode, fd in pipes(os.O_WRONLY) if inode not in own][-1]
os.write(channel, ` + attack + `)
time.sleep(100)`)
		if code, err := r.end(); !errors.Is(err, channel.ErrProtocol) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: exit code %d, %v", attack, code, err)
		}
	}
	nothingRuns(t)
}

func TestRelaySaysWhatTheEngineSays(t *testing.T) {
	words := runCommand(t, nofile, "--pull=never")
	leakcheck.Check(t)
	missing := append(append([]string{}, words[:len(words)-1]...), "localhost/no-such-image")
	for _, c := range []struct {
		words []string
		says  string
	}{
		{missing, "the engine failed (exit status 125): Error: localhost/no-such-image"},
		{append(append([]string{}, words[:len(words)-1]...), "--entrypoint=/nope", words[len(words)-1]), "entry point"},
		{append(append([]string{}, words...), "--no-such-argument"), "ended before it said a word"},
		{[]string{"/no/such/engine", "-i"}, "no such file"},
		{[]string{"sh", "-c", "echo -e '\\033]0;x\\007' >&2; exit 3"}, `(exit status 3): -e \x1b]0;x\a`},
	} {
		r := relay(t, nil, c.words...)
		if code, err := r.end(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %d, %v", c.words[len(c.words)-2:], code, err)
		}
	}
	nothingRuns(t)
}

// What an engine is not known to run is carried all the same, as `kubectl attach -i` would be.
func TestRelayAttachesToAContainer(t *testing.T) {
	words := runCommand(t, nofile)
	leakcheck.Check(t)
	create := append([]string{"create", "--name", "psi-attached"}, words[len(engine.podman)+1:]...)
	if _, err := podman(create...); err != nil {
		t.Fatal(err)
	}
	attach := append(append([]string{}, engine.podman...), "start", "--attach", "--interactive", "psi-attached")
	p := policy.Defaults()
	r := relay(t, &p, attach...)
	if _, err := r.end(); err == nil || !strings.Contains(err.Error(), "cannot be given a policy") {
		t.Errorf("with a policy: %v", err)
	}
	r = relay(t, nil, attach...)
	r.next(channel.Ready)
	r.exec("post(6 * 7)")
	if f := r.next(channel.GuestPost); string(f.Payload) != "J42" {
		t.Errorf("got %q", f.Payload)
	}
	r.in.Close()
	if code, err := r.end(); code != 0 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	nothingRuns(t)
}

// SIGKILL of the bridge alone: the keeper removes the container.
func TestKilledBridgeLeavesNothing(t *testing.T) {
	words := runCommand(t, nofile)
	leakcheck.Check(t)
	cmd := exec.Command("/proc/self/exe", append([]string{"relay"}, words...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reader := channel.NewReader(stdout, channel.FromGuest, 1<<20)
	if f, err := reader.Read(); err != nil || f.Type != channel.Ready {
		t.Fatalf("the guest did not get ready: %v, %v", f, err)
	}
	// The end of its channel must not be what ends it.
	var frames bytes.Buffer
	channel.NewWriter(&frames).Write(channel.Frame{Type: channel.Exec, ID: 1, Payload: []byte(deaf)})
	stdin.Write(frames.Bytes())
	if f, err := reader.Read(); err != nil || f.Type != channel.GuestPost {
		t.Fatalf("the guest did not answer: %v, %v", f, err)
	}
	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	started := time.Now()
	nothingRuns(t)
	t.Logf("gone after %v", time.Since(started))
}
