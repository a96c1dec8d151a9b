package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newLog(t *testing.T) (l *EventLog, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), strings.Repeat("longer-than-an-address/", 6))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := OpenEventLog(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	return l, dir
}

// denials adds n denials, each of which speaks of one more that was suppressed.
func (l *EventLog) add(t *testing.T, n int, path string) {
	t.Helper()
	for range n {
		if err := l.Add(Denied, time.Now(), map[string]any{"kind": "fs", "path": path, "suppressed": uint64(1)}); err != nil {
			t.Error(err)
		}
	}
}

func readEvent(t *testing.T, from *bufio.Reader) (e Event, ok bool) {
	t.Helper()
	line, err := from.ReadBytes('\n')
	if err == io.EOF && len(line) == 0 {
		return e, false
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if e.Guest != "x" || e.Name != "x" || e.TS == 0 {
		t.Errorf("%+v", e)
	}
	return e, true
}

// Whoever connects gets what was before and what comes, until the end.
func TestEventLog(t *testing.T) {
	l, dir := newLog(t)
	l.add(t, 1, "/before")
	conn, err := DialEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	if e, _ := readEvent(t, lines); e.Details["path"] != "/before" {
		t.Errorf("%+v", e)
	}
	l.add(t, 1, "/after")
	if e, _ := readEvent(t, lines); e.Details["path"] != "/after" {
		t.Errorf("%+v", e)
	}
	if err := l.Add(MemKill, time.Now(), nil); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if e, _ := readEvent(t, lines); e.Event != MemKill {
		t.Errorf("%+v", e)
	}
	if e, ok := readEvent(t, lines); ok {
		t.Errorf("after the end: %+v", e)
	}
}

// A guest's flood takes no more memory than is set, holds up nobody, and no denial is
// lost from the sum: neither for a reader that sleeps nor for one that comes late.
func TestEventLogIsBounded(t *testing.T) {
	l, dir := newLog(t)
	l.add(t, 10, "/early")
	sleeper, err := DialEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer sleeper.Close()
	flood, long := 10_000, "/"+strings.Repeat("x", 1000)
	l.add(t, flood, long)
	l.mu.Lock()
	size := 0
	for _, e := range l.kept {
		size += len(e.line)
	}
	if size > maxKept || size != l.size || l.size < maxKept/2 {
		t.Errorf("%d bytes are kept, %d are thought to be", size, l.size)
	}
	l.mu.Unlock()
	late, err := DialEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	sums := make(chan int, 2)
	for _, conn := range []io.Reader{sleeper, late} {
		go func() {
			sum := 0
			defer func() { sums <- sum }() // a failure ends the goroutine
			for lines := bufio.NewReader(conn); ; {
				e, ok := readEvent(t, lines)
				if !ok {
					break
				}
				sum += int(e.Details["suppressed"].(float64))
				if e.Details["kind"] != Suppressed {
					sum++
				}
			}
		}()
	}
	for range 2 {
		if sum := <-sums; sum != 2*(flood+10) {
			t.Errorf("told of %d denials, want %d", sum, 2*(flood+10))
		}
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A reader that never reads does not keep the log from being closed, and one that has
// gone leaves nothing behind.
func TestEventLogReadersGo(t *testing.T) {
	l, dir := newLog(t)
	stuck, err := DialEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	gone, err := DialEvents(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Write(bytes.Repeat([]byte("nonsense\n"), 1000)); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	l.add(t, 1000, "/"+strings.Repeat("x", 1000))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		readers := len(l.readers)
		l.mu.Unlock()
		if readers == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d readers", readers)
		}
	}
	done := make(chan error)
	go func() { done <- l.Close() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a reader that does not read keeps the log open")
	}
	if _, err := DialEvents(dir); err == nil {
		t.Error("somebody listens still")
	}
	if _, err := OpenEventLog(dir+"/"+fmt.Sprint(os.Getpid()), "x"); err == nil {
		t.Error("a directory that is not there")
	}
}
