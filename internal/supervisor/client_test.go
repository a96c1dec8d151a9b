package supervisor

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/leakcheck"
)

// shim is a running supervisor of a test.
type shim struct {
	cmd    *exec.Cmd
	runDir string
	config Config
	log    *bytes.Buffer
	done   chan struct{} // closed when the outer process has been reaped
}

// newRunDir makes a run directory of the test's own and checks at its end that
// nothing is left in it.
func newRunDir(t testing.TB) string {
	t.Helper()
	leakcheck.Check(t)
	dir, err := os.MkdirTemp("/run", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		if len(left) > 0 {
			t.Errorf("left in the run directory: %v", left)
		}
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("left mounted below %s", dir)
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

// startShim runs an outer process; control is nil for a shared supervisor.
func startShim(t testing.TB, config Config, control *os.File) *shim {
	t.Helper()
	if config.RunDir == "" {
		config.RunDir = newRunDir(t)
	}
	if config.Rootfs == "" {
		config.Rootfs = testRoot
	}
	config.Version, config.LogLevel = "psi-shim test", "warning"
	argument, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	s := &shim{cmd: exec.Command("/proc/self/exe", "outer", string(argument)), config: config, runDir: config.RunDir, log: &bytes.Buffer{}, done: make(chan struct{})}
	s.cmd.Stderr = &lockedWriter{w: s.log}
	s.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if control != nil {
		s.cmd.ExtraFiles = []*os.File{control}
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(unix.SIGTERM)
		if !s.gone(scaled(20 * time.Second)) {
			_ = s.cmd.Process.Kill()
			t.Errorf("the supervisor did not end")
		}
		if t.Failed() && s.log.Len() > 0 {
			t.Logf("supervisor's log:\n%s", s.log)
		}
	})
	return s
}

// gone waits for the outer process to have ended.
func (s *shim) gone(patience time.Duration) bool {
	select {
	case <-s.done:
		return true
	case <-time.After(patience):
		return false
	}
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// embedded starts a supervisor for this process and greets it.
func embedded(t testing.TB) (*shim, *testClient) {
	t.Helper()
	return embeddedWith(t, Config{})
}

func embeddedWith(t testing.TB, config Config) (*shim, *testClient) {
	t.Helper()
	mine, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	s := startShim(t, config, theirs)
	_ = theirs.Close()
	c := newTestClient(t, mine)
	c.hello(t)
	return s, c
}

// testClient speaks the control protocol.
type testClient struct {
	conn   *net.UnixConn
	mu     sync.Mutex // guards what follows
	nextID uint64
	waits  map[uint64]chan answer
	pushed chan map[string]any
	ended  chan struct{} // closed at the end of the stream
}

type answer struct {
	OK    json.RawMessage `json:"ok"`
	Error *struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	} `json:"error"`
	file *os.File
}

func newTestClient(t testing.TB, file *os.File) *testClient {
	t.Helper()
	conn, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := &testClient{conn: conn.(*net.UnixConn), waits: make(map[uint64]chan answer), pushed: make(chan map[string]any, 1000), ended: make(chan struct{})}
	t.Cleanup(func() { _ = conn.Close() })
	go c.read()
	return c
}

// read takes messages apart until the stream ends.
func (c *testClient) read() {
	defer close(c.ended)
	var buf []byte
	var files []*os.File
	chunk, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		for len(buf) >= 4 && len(buf) >= 4+int(binary.BigEndian.Uint32(buf)) {
			size := 4 + int(binary.BigEndian.Uint32(buf))
			c.take(buf[4:size], &files)
			buf = buf[size:]
		}
		n, oobn, _, _, err := c.conn.ReadMsgUnix(chunk, oob)
		if err != nil || n == 0 && oobn == 0 {
			return
		}
		buf = append(buf, chunk[:n]...)
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "channel"))
			}
		}
	}
}

func (c *testClient) take(body []byte, files *[]*os.File) {
	var head struct {
		ID *uint64 `json:"id"`
		answer
	}
	if err := json.Unmarshal(body, &head); err != nil {
		panic(fmt.Sprintf("not JSON: %q", body))
	}
	if head.ID == nil {
		var m map[string]any
		_ = json.Unmarshal(body, &m)
		c.pushed <- m
		return
	}
	if len(*files) > 0 && (bytes.Contains(head.OK, []byte(`"enforced"`)) || string(head.OK) == `{"connected":true}`) {
		head.file, *files = (*files)[0], (*files)[1:]
	}
	c.mu.Lock()
	wait := c.waits[*head.ID]
	delete(c.waits, *head.ID)
	c.mu.Unlock()
	if wait != nil {
		wait <- head.answer
	}
}

// post sends a request without waiting for its answer.
func (c *testClient) post(request map[string]any) (chan answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	request["id"] = c.nextID
	wait := make(chan answer, 1)
	c.waits[c.nextID] = wait
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return wait, control.WriteFrame(c.conn, body, nil)
}

var errNoAnswer = errors.New("no answer")

// ask sends a request and waits for the answer.
func (c *testClient) ask(request map[string]any) (answer, error) {
	wait, err := c.post(request)
	if err != nil {
		return answer{}, err
	}
	select {
	case a := <-wait:
		if a.Error != nil {
			return a, fmt.Errorf("%s: %s", a.Error.Kind, a.Error.Message)
		}
		return a, nil
	case <-c.ended:
		return answer{}, errNoAnswer
	case <-time.After(scaled(60 * time.Second)):
		return answer{}, errNoAnswer
	}
}

func (c *testClient) must(t testing.TB, request map[string]any) answer {
	t.Helper()
	a, err := c.ask(request)
	if err != nil {
		t.Fatalf("%v: %v", request, err)
	}
	return a
}

// refused asks for something that must be refused with this kind and text.
func (c *testClient) refused(t testing.TB, kind, text string, request map[string]any) {
	t.Helper()
	a, err := c.ask(request)
	if err == nil {
		if a.file != nil {
			_ = a.file.Close()
		}
		t.Errorf("%v: not refused", request)
		return
	}
	if a.Error == nil || a.Error.Kind != kind || !strings.Contains(a.Error.Message, text) {
		t.Errorf("%v: got %v, want %s: …%s…", request, err, kind, text)
	}
}

func (c *testClient) hello(t testing.TB) {
	t.Helper()
	c.must(t, map[string]any{"op": "hello", "version": 2, "client": "test"})
}

// next returns the next pushed message that has the key.
func (c *testClient) next(t testing.TB, key string, patience time.Duration) map[string]any {
	t.Helper()
	timer := time.After(patience)
	for {
		select {
		case m := <-c.pushed:
			if _, ok := m[key]; ok {
				return m
			}
		case <-timer:
			t.Fatalf("no message with %q after %v", key, patience)
		}
	}
}

// event returns the next event of a type; a slow machine throttles guests that a fast
// one does not.
func (c *testClient) event(t testing.TB, name string, patience time.Duration) map[string]any {
	t.Helper()
	for {
		if ev := c.next(t, "event", patience); ev["event"] == name {
			return ev
		}
	}
}

// exited returns how the next guest ended.
func (c *testClient) exited(t testing.TB, patience time.Duration) map[string]any {
	t.Helper()
	_, exit := c.untilExit(t, patience)
	return exit
}

// untilExit returns how the next guest ended, and the events before that.
func (c *testClient) untilExit(t testing.TB, patience time.Duration) (events []map[string]any, exit map[string]any) {
	t.Helper()
	timer := time.After(patience)
	for {
		select {
		case m := <-c.pushed:
			if exit, ok := m["exited"].(map[string]any); ok {
				return events, exit
			}
			events = append(events, m)
		case <-timer:
			t.Fatalf("no guest ended within %v", patience)
		}
	}
}
