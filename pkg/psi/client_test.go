package psi

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/channel"
)

func asGuest(err error) bool {
	var guest *GuestError
	return errors.As(err, &guest)
}

func asSandbox(err error, end **SandboxError) bool { return errors.As(err, end) }

func TestTheCallsOfTheInterface(t *testing.T) {
	c := open(t)
	sb, err := c.Spawn(soon(t), "guest42", SpawnOptions{Policy: Named("defaults")})
	if err != nil {
		t.Fatal(err)
	}
	run(t, sb, "from math import sqrt; post(sqrt(2))")
	if v := recv(t, sb); v != 1.4142135623730951 {
		t.Errorf("sqrt(2) is %v", v)
	}
	if v, err := sb.Call(soon(t), "math.hypot", 3, 4); err != nil || v != 5.0 {
		t.Errorf("hypot(3, 4) is %v, %v", v, err)
	}
	if v, err := sb.Call(soon(t), "sorted", []any{3, 1, 2}, Kw{"reverse": true}); err != nil || !reflect.DeepEqual(v, []any{int64(3), int64(2), int64(1)}) {
		t.Errorf("sorted is %v, %v", v, err)
	}
	run(t, sb, "while True: post(recv() * 2)") // state and loops live on between calls
	for _, v := range []any{21, "ab", channel.Tuple{1}} {
		if err := sb.Post(soon(t), v); err != nil {
			t.Fatal(err)
		}
	}
	if got := []any{recv(t, sb), recv(t, sb), recv(t, sb)}; !reflect.DeepEqual(got, []any{int64(42), "abab", channel.Tuple{int64(1), int64(1)}}) {
		t.Errorf("doubled: %v", got)
	}
	if c.ListActive()["guest42"] != sb || len(c.ListActive()) != 1 {
		t.Errorf("active: %v", c.ListActive())
	}
	stats, err := sb.Stats(soon(t))
	if err != nil || stats.CPU < time.Millisecond || stats.Mem < 1<<20 || stats.PIDs < 1 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	if _, err := c.Spawn(soon(t), "guest42", SpawnOptions{}); !errors.Is(err, ErrSandbox) || !strings.Contains(err.Error(), "already running") {
		t.Errorf("a second guest of that name: %v", err)
	}
	if err := sb.Close(soon(t), Grace); err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(soon(t), Grace); err != nil || len(c.ListActive()) != 0 {
		t.Errorf("closing again: %v; active: %v", err, c.ListActive())
	}
	for what, err := range map[string]error{"exec": sb.Exec(soon(t), "1"), "post": sb.Post(soon(t), 1), "interrupt": sb.Interrupt(soon(t)), "err": sb.Err()} {
		var end *SandboxError
		if !errors.As(err, &end) || end.Cause != "closed" {
			t.Errorf("%s of a closed sandbox: %v", what, err)
		}
	}
	if _, err := c.Spawn(soon(t), "guest42", SpawnOptions{}); err != nil {
		t.Errorf("its name is not free: %v", err)
	}
}

func TestExceptionsOfTheGuest(t *testing.T) {
	sb := spawn(t, open(t), "")
	run(t, sb, "import json\njson.loads('{')")
	_, err := sb.Recv(soon(t))
	var guest *GuestError
	if !errors.As(err, &guest) || !errors.Is(err, ErrSandbox) || guest.Type != "json.decoder.JSONDecodeError" || !strings.Contains(guest.Traceback, "json.loads") {
		t.Errorf("recv: %#v", err)
	}
	_, err = sb.Call(soon(t), "int", "x")
	if !errors.As(err, &guest) || guest.Type != "ValueError" || len(guest.Args) != 1 {
		t.Errorf("call: %#v", err)
	}
	run(t, sb, `raise ValueError('\x1b]0;owned\x07\x1b[2J\ud800')`)
	_, err = sb.Recv(soon(t))
	if !errors.As(err, &guest) || strings.ContainsAny(err.Error()+guest.Message+guest.Traceback, "\x1b\x07") {
		t.Errorf("escapes of a terminal: %q", err)
	}
	works(t, sb)
}

func TestWaitsEndWithTheirContext(t *testing.T) {
	sb := spawn(t, open(t), "")
	_, err := sb.Recv(within(t, 50*time.Millisecond))
	var timeout *TimeoutError
	if !errors.As(err, &timeout) || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrSandbox) {
		t.Errorf("recv: %#v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := sb.Call(ctx, "time.sleep", 1000); !errors.As(err, &timeout) || !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
	works(t, sb) // the call was interrupted: the next request runs
	if err := sb.ExecWait(within(t, 100*time.Millisecond), "while True: pass", nil, nil); !errors.As(err, &timeout) {
		t.Errorf("exec: %v", err)
	}
	works(t, sb)
	if err := sb.Interrupt(soon(t)); err != nil {
		t.Errorf("nothing to interrupt: %v", err)
	}
	run(t, sb, "while True: pass")
	time.Sleep(scaled(100 * time.Millisecond))
	if err := sb.Interrupt(soon(t)); err != nil {
		t.Fatal(err)
	}
	var guest *GuestError
	if _, err := sb.Recv(soon(t)); !errors.As(err, &guest) || guest.Type != "KeyboardInterrupt" {
		t.Errorf("interrupted: %v", err)
	}
}

func TestSpawnEndsWithItsContext(t *testing.T) {
	c := open(t)
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(time.Now().UnixNano()%30)*time.Millisecond)
		_, err := c.Spawn(ctx, "hasty", SpawnOptions{})
		cancel()
		var timeout *TimeoutError
		if err != nil && !errors.As(err, &timeout) && !strings.Contains(err.Error(), "already running") {
			t.Errorf("spawn: %v", err)
		}
		if err == nil {
			c.ListActive()["hasty"].Kill(soon(t))
		}
	}
}

func TestOutput(t *testing.T) {
	sb := spawn(t, open(t), "")
	var stdout, stderr strings.Builder
	if err := sb.ExecWait(soon(t), "import sys\nfor n in range(1000): print(n)\nprint('é', file=sys.stderr)", &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(stdout.String(), "\n"); len(lines) != 1001 || lines[999] != "999" || stderr.String() != "é\n" {
		t.Errorf("%d lines, stderr %q", len(lines), stderr.String())
	}
	if !strings.HasSuffix(sb.Stdout(), "\n999\n") || sb.Stderr() != "é\n" {
		t.Errorf("tails %q, %q", sb.Stdout(), sb.Stderr())
	}
	// A writer that fails ends the wait, not the guest.
	if err := sb.ExecWait(soon(t), "while True: print('x' * 1000)", broken{}, nil); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a broken writer: %v", err)
	}
	works(t, sb)
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestLimitsAndEvents(t *testing.T) {
	c := open(t)
	events := c.Events(t.Context())
	next := func(sb *Sandbox) Event {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Sandbox == sb && e.Details["reason"] != "quota" { // a slow machine's guests wait for their share
					return e
				}
			case <-soon(t).Done():
				t.Fatal("no event came")
			}
		}
	}
	sb := spawn(t, c, `{"mem": "64MiB"}`)
	run(t, sb, "x = bytearray(200 << 20)")
	var memory *MemoryExceeded
	if _, err := sb.Recv(soon(t)); !errors.As(err, &memory) || memory.Limit != 64<<20 || memory.Cause != "oom" {
		t.Errorf("memory: %v", err)
	}
	if e := next(sb); e.Type != MemKill || time.Since(e.Time) > time.Minute {
		t.Errorf("event %+v", e)
	}
	sb = spawn(t, c, `{"cpu_ms": 100}`)
	run(t, sb, "while True: pass")
	var cpu *CPUExceeded
	if _, err := sb.Recv(soon(t)); !errors.As(err, &cpu) || cpu.Observed < 100 {
		t.Errorf("cpu: %v", err)
	}
	if e := next(sb); e.Type != CPUThrottle {
		t.Errorf("event %+v", e)
	}
	sb = spawn(t, c, `{"wall_ms": 300}`)
	if end := endOf(t, sb); end.Cause != "wall" {
		t.Errorf("wall: %v", end)
	}
	<-sb.Done()
	sb = spawn(t, c, "")
	if err := sb.UpdatePolicy(soon(t), Document(`{"mem": "128MiB"}`), ""); err != nil {
		t.Fatal(err)
	}
	if e := next(sb); e.Type != PolicyHotload {
		t.Errorf("event %+v", e)
	}
	c.Close()
	for range events { // it ends with the client
	}
}

// A guest that posts while nobody receives waits itself; so does one that has too much to read.
func TestWhoWaits(t *testing.T) {
	sb := spawn(t, open(t), `{"mem": "512MiB"}`)
	run(t, sb, "for n in range(40): post(b'x' * (4 << 20))\npost('last')")
	time.Sleep(scaled(500 * time.Millisecond))
	sb.session.mu.Lock()
	held := sb.session.held
	sb.session.mu.Unlock()
	if held > inboxBytes+5<<20 {
		t.Errorf("%d bytes are held for a client that does not receive", held)
	}
	for range 40 {
		if v, ok := recv(t, sb).([]byte); !ok || len(v) != 4<<20 {
			t.Fatalf("got %d bytes", len(v))
		}
	}
	if v := recv(t, sb); v != "last" {
		t.Errorf("got %v", v)
	}
	run(t, sb, "import time; time.sleep(1000)")
	full := within(t, 500*time.Millisecond)
	var err error
	for n := 0; err == nil && n < 100; n++ {
		err = sb.Post(full, make([]byte, 1<<20))
	}
	var timeout *TimeoutError
	if !errors.As(err, &timeout) {
		t.Errorf("posting to a guest that does not read: %v", err)
	}
	if err := sb.Kill(soon(t)); err != nil {
		t.Fatal(err)
	}
}

func TestManyGoroutines(t *testing.T) {
	c := open(t)
	sandboxes := []*Sandbox{spawn(t, c, ""), spawn(t, c, "")}
	var all sync.WaitGroup
	for n := range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			sb := sandboxes[n%2]
			for i := range 50 {
				if v, err := sb.Call(soon(t), "abs", -i); err != nil || v != int64(i) {
					t.Errorf("abs(-%d) is %v, %v", i, v, err)
				}
				if n == 0 && i%10 == 0 {
					if _, err := sb.Stats(soon(t)); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	all.Wait()
}

func TestTheSupervisorDies(t *testing.T) {
	c := open(t)
	sb := spawn(t, c, "")
	run(t, sb, "post(1)")
	recv(t, sb)
	if err := c.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if end := endOf(t, sb); end.Cause != "supervisor" {
		t.Errorf("cause %q: %v", end.Cause, end)
	}
	var lost *SandboxError
	if _, err := c.Spawn(soon(t), "late", SpawnOptions{}); !errors.As(err, &lost) || lost.Cause != "supervisor" {
		t.Errorf("spawn: %v", err)
	}
	if err := sb.Close(soon(t), Grace); err != nil {
		t.Errorf("close: %v", err)
	}
	// Another client's supervisor removes what is left of the guest.
	another, err := Open(soon(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer another.Close()
	works(t, spawn(t, another, ""))
}

func TestAnotherVersionOfTheSupervisor(t *testing.T) {
	_, err := Open(soon(t), Options{Shim: "/bin/false"})
	if !errors.Is(err, ErrSandbox) || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a program that is no psi-shim: %v", err)
	}
	if _, err = Open(soon(t), Options{Socket: "/no/such/socket"}); !errors.Is(err, ErrSandbox) || !strings.Contains(err.Error(), "psi-shim serve --socket") {
		t.Errorf("no socket: %v", err)
	}
	noGoroutines(t)
}
