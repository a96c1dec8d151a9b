package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// EventSocket is where a container without a supervisor tells its events, in its state
// directory, which only its owner may enter:
//
//	psi-runtime run, or attend ──► EventSocket ──► psi-runtime events ID
//	                    a line of JSON for each Event, until the container has ended
//
// Nothing is said in the other direction.
const EventSocket = "events.sock"

const (
	// maxKept bounds what is kept for readers, in bytes of lines.
	maxKept = 1 << 20
	// partWritten bounds what one write takes, so that a slow reader is held up by little.
	partWritten = 64 << 10
)

// EventLog keeps the last events of a container and tells them to whoever connects: first
// what is kept, then what comes. A reader is never waited for. One that is so slow that
// events are dropped, or that comes late, is told how many denials it has missed.
type EventLog struct {
	id       string // of the container
	listener *net.UnixListener
	serving  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond
	kept    []keptEvent
	size    int    // bytes of the lines in kept
	first   uint64 // number of kept[0], counting from the container's first event
	denials uint64 // that all events so far speak of, those kept no more too
	readers map[*net.UnixConn]bool
	closed  bool
}

type keptEvent struct {
	line   []byte
	before uint64 // denials that the events before this one speak of
}

// OpenEventLog listens in the state directory of the container id. The caller closes the log
// when the container has ended; the socket goes with the directory.
func OpenEventLog(dir, id string) (*EventLog, error) {
	var listener *net.UnixListener
	err := throughDirectory(dir, EventSocket, func(path string) (err error) {
		listener, err = listenAt(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening for readers of events: %w", err)
	}
	l := &EventLog{id: id, listener: listener, readers: make(map[*net.UnixConn]bool)}
	l.changed = sync.NewCond(&l.mu)
	l.serving.Go(l.accept)
	return l, nil
}

// DialEvents connects to the log of the container with this state directory.
func DialEvents(dir string) (conn *net.UnixConn, err error) {
	err = throughDirectory(dir, EventSocket, func(path string) error {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the container's events: %w", err)
	}
	return conn, nil
}

// throughDirectory gives a path of a socket that is short enough for an address, however
// long the directory's is. The directory itself is no link.
func throughDirectory(dir, socket string, use func(path string) error) error {
	open, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer open.Close()
	return use(filepath.Join("/proc/self/fd", strconv.Itoa(int(open.Fd())), socket))
}

// listenAt makes a socket that its owner alone may connect to, and that goes with its directory.
func listenAt(path string) (*net.UnixListener, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Add tells an event of a type.
func (l *EventLog) Add(kind string, at time.Time, details map[string]any) error {
	line, err := l.line(kind, at, details)
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, keptEvent{line, l.denials})
	l.denials += denialsOf(kind, details)
	l.size += len(line)
	for l.size > maxKept {
		l.size -= len(l.kept[0].line)
		l.kept = l.kept[1:]
		l.first++
	}
	l.changed.Broadcast()
	return nil
}

// line is an event as readers get it. A container has one name.
func (l *EventLog) line(kind string, at time.Time, details map[string]any) ([]byte, error) {
	line, err := json.Marshal(Event{Event: kind, Guest: l.id, Name: l.id, TS: float64(at.UnixMicro()) / 1e6, Details: details})
	return append(line, '\n'), err
}

// denialsOf is how many denials an event speaks of: itself, and those that were suppressed
// before it.
func denialsOf(kind string, details map[string]any) uint64 {
	if kind != Denied {
		return 0
	}
	suppressed, _ := details["suppressed"].(uint64)
	if details["kind"] == Suppressed {
		return suppressed
	}
	return suppressed + 1
}

// Close ends the log: who reads gets what is kept, within a moment. So does who has connected
// and was not accepted yet.
func (l *EventLog) Close() error {
	err := l.listener.SetDeadline(time.Unix(1, 0))
	l.mu.Lock()
	l.closed = true
	for conn := range l.readers {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	l.changed.Broadcast()
	l.mu.Unlock()
	l.serving.Wait()
	return errors.Join(err, l.listener.Close())
}

func (l *EventLog) accept() {
	for {
		conn, err := l.listener.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.acceptRest()
			return
		case err != nil: // no descriptors left, perhaps for a moment only
			time.Sleep(10 * time.Millisecond)
			continue
		}
		l.admit(conn)
	}
}

// acceptRest takes those in who have connected, and waits for nobody. After its deadline Go
// accepts no more, even those who are there.
func (l *EventLog) acceptRest() {
	raw, err := l.listener.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(listener uintptr) {
		_ = unix.Shutdown(int(listener), unix.SHUT_RD) // nobody else
		for {
			fd, _, err := unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != nil {
				return
			}
			file := os.NewFile(uintptr(fd), "reader")
			conn, err := net.FileConn(file)
			file.Close()
			if reader, ok := conn.(*net.UnixConn); ok && err == nil {
				l.admit(reader)
			}
		}
	})
}

func (l *EventLog) admit(conn *net.UnixConn) {
	l.mu.Lock()
	l.readers[conn] = true
	if l.closed {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	l.mu.Unlock()
	l.serving.Go(func() { l.tell(conn) })
	l.serving.Go(func() { l.awaitEnd(conn) })
}

// awaitEnd returns when the reader has gone, whatever it says until then.
func (l *EventLog) awaitEnd(conn *net.UnixConn) {
	ignored := make([]byte, 512)
	for {
		if _, err := conn.Read(ignored); err != nil {
			l.forget(conn)
			return
		}
	}
}

func (l *EventLog) forget(conn *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.readers, conn)
	l.changed.Broadcast()
}

// tell writes events to a reader until either side ends.
func (l *EventLog) tell(conn *net.UnixConn) {
	defer conn.Close()
	var at position
	for {
		text := l.after(conn, &at)
		if len(text) == 0 {
			return
		}
		if _, err := conn.Write(text); err != nil {
			return
		}
	}
}

// position is how far a reader has come.
type position struct {
	next    uint64 // number of the event that it gets next
	denials uint64 // that it was told of
}

// after waits for events at a position, moves it behind them, and returns their lines.
// Nothing is returned at the end.
func (l *EventLog) after(conn *net.UnixConn, at *position) (text []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at.next >= l.first+uint64(len(l.kept)) {
		if l.closed || !l.readers[conn] {
			return nil
		}
		l.changed.Wait()
	}
	if at.next < l.first {
		at.next = l.first
		text = l.missed(l.kept[0].before - at.denials)
		at.denials = l.kept[0].before
	}
	for ; at.next < l.first+uint64(len(l.kept)) && len(text) < partWritten; at.next++ {
		text = append(text, l.kept[at.next-l.first].line...)
	}
	at.denials = l.denials
	if rest := at.next - l.first; rest < uint64(len(l.kept)) {
		at.denials = l.kept[rest].before
	}
	return text
}

// missed is the line that says how many denials a reader was not told of.
func (l *EventLog) missed(denials uint64) []byte {
	if denials == 0 {
		return nil
	}
	line, _ := l.line(Denied, time.Now(), map[string]any{"kind": Suppressed, "suppressed": denials}) // which can be encoded
	return line
}
