package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PolicySocket is where whoever attends a container without a supervisor takes another
// policy for it, in its state directory:
//
//	psi-runtime policy apply ──► PolicySocket ──► psi-runtime run, or attend
//	    a frame, PolicyChange,
//	    with a descriptor ───────►
//	                    ◄─────── a frame: {"ok": …} or {"error": {"kind", "message"}}
//
// Then both close. The kernel says which user asks: root, or the user of who attends. The
// root user of a container may be the host's, and the directory may have been mounted in a
// container; so the descriptor is of the pid namespace that the caller is in. It has to be
// the attendant's own, and a process in a namespace below has no way to one of that.
const PolicySocket = "policy.sock"

// PolicyChange asks for another policy.
type PolicyChange struct {
	Text   string `json:"policy_text"`
	Source string `json:"policy_source"` // what messages call it
	DryRun bool   `json:"dry_run"`       // only say what would change
	// Untold asks for no policy, but for the events that are not told of on this host.
	Untold bool `json:"untold,omitempty"`
}

const (
	// maxStrangers is how many callers may have said nothing yet; one more, and who has
	// said nothing for the longest time goes.
	maxStrangers = 32
	// callerPatience is how long a caller may take to ask, and to take the answer.
	callerPatience = 5 * time.Second
	// answerPatience is how long the answer may take, and statePatience how long that of who
	// changes nothing.
	answerPatience = 2 * time.Minute
	statePatience  = time.Second
)

// PolicyServer takes policies for one container.
type PolicyServer struct {
	listener *net.UnixListener
	handle   func(PolicyChange) (any, error)
	serving  sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	strangers []*net.UnixConn
	closed    bool
}

// ServePolicy listens in the state directory of a container, and calls handle for each
// change that is asked for by somebody who may, perhaps several at a time.
func ServePolicy(dir string, handle func(PolicyChange) (any, error)) (*PolicyServer, error) {
	s := &PolicyServer{handle: handle}
	err := throughDirectory(dir, PolicySocket, func(path string) (err error) {
		s.listener, err = listenAt(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening for policies: %w", err)
	}
	s.serving.Go(s.accept)
	return s, nil
}

// Close returns when nothing is being handled any more.
func (s *PolicyServer) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, conn := range s.strangers {
		_ = conn.Close()
	}
	s.mu.Unlock()
	err := s.listener.Close()
	s.serving.Wait()
	return err
}

func (s *PolicyServer) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // no descriptors left, perhaps for a moment only
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		if s.closed {
			_ = conn.Close()
		} else if s.strangers = append(s.strangers, conn); len(s.strangers) > maxStrangers {
			_ = s.strangers[0].Close()
			s.strangers = s.strangers[1:]
		}
		s.mu.Unlock()
		s.serving.Go(func() { s.serve(conn) })
	}
}

func (s *PolicyServer) serve(conn *net.UnixConn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(callerPatience))
	size, err := admit(conn)
	s.mu.Lock()
	s.strangers = slices.DeleteFunc(s.strangers, func(c *net.UnixConn) bool { return c == conn })
	s.mu.Unlock()
	var change PolicyChange
	if err == nil {
		change, err = readChange(conn, size)
	}
	var reply struct {
		OK    any      `json:"ok,omitempty"`
		Error *Refusal `json:"error,omitempty"`
	}
	if err == nil {
		reply.OK, err = s.handle(change)
	}
	if err != nil {
		reply.OK, reply.Error = nil, &Refusal{Kind: Kind(err), Message: err.Error()}
	}
	body, err := json.Marshal(reply)
	if err != nil {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(callerPatience))
	_ = WriteFrame(conn, body, nil)
}

// admit reads the length of the request, and says no to who may not ask.
func admit(conn *net.UnixConn) (size uint32, err error) {
	uid, err := PeerUID(conn)
	if err != nil {
		return 0, err
	}
	if uid != 0 && uid != uint32(os.Geteuid()) {
		return 0, fmt.Errorf("%w: uid %d may not change the container's policy: ask as root, or as the user of who made it", ErrAuth, uid)
	}
	var header [frameHeader]byte
	control := make([]byte, unix.CmsgSpace(4))
	n, controls, flags, _, err := conn.ReadMsgUnix(header[:], control)
	files, badControl := filesOf(control[:controls])
	defer closeAll(files)
	err = errors.Join(err, badControl)
	if flags&unix.MSG_CTRUNC != 0 {
		err = errors.Join(err, errors.New("its descriptor was lost: there are several, or who attends the container can open no more files"))
	}
	if err == nil && n < len(header) {
		_, err = io.ReadFull(conn, header[n:])
	}
	if err != nil {
		return 0, fmt.Errorf("%w: reading the request: %w", ErrProtocol, err)
	}
	if len(files) != 1 || !sharesPIDs(files[0]) {
		return 0, fmt.Errorf("%w: the caller does not show that it is in the attendant's pid namespace, which no process of a container can: ask from where the container was made", ErrAuth)
	}
	if size = binary.BigEndian.Uint32(header[:]); size > MaxFrame {
		return 0, fmt.Errorf("%w: a request of %d bytes; the largest allowed has %d", ErrProtocol, size, MaxFrame)
	}
	return size, nil
}

// ownPIDs is the pid namespace of this process.
const ownPIDs = "/proc/self/ns/pid"

// sharesPIDs reports whether a descriptor is of this process's own pid namespace.
func sharesPIDs(f *os.File) bool {
	own, err := os.Stat(ownPIDs)
	if err != nil {
		return false
	}
	theirs, err := f.Stat()
	return err == nil && os.SameFile(own, theirs)
}

func readChange(conn *net.UnixConn, size uint32) (change PolicyChange, err error) {
	// The length is a claim: memory is taken as the bytes arrive.
	body, err := io.ReadAll(io.LimitReader(conn, int64(size)))
	if err == nil && uint32(len(body)) != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = json.Unmarshal(body, &change)
	}
	if err != nil {
		return change, fmt.Errorf("%w: reading the request: %w", ErrProtocol, err)
	}
	return change, nil
}

// ErrUnattended means that nobody serves a container from the host any more.
var ErrUnattended = errors.New("nobody attends the container")

// AskForPolicy asks whoever attends the container with this state directory, and decodes
// the answer into ok. A refusal is a [*Refusal].
func AskForPolicy(dir string, change PolicyChange, ok any) error {
	body, err := json.Marshal(change)
	if err == nil && len(body) > MaxFrame {
		err = fmt.Errorf("%d bytes; the largest allowed has %d", len(body), MaxFrame)
	}
	if err != nil {
		return fmt.Errorf("encoding the policy: %w", err)
	}
	var conn *net.UnixConn
	err = throughDirectory(dir, PolicySocket, func(path string) error {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return ErrUnattended
	case err != nil:
		return fmt.Errorf("connecting to who attends the container: %w", err)
	}
	defer conn.Close()
	var reply struct {
		OK    json.RawMessage `json:"ok"`
		Error *Refusal        `json:"error"`
	}
	patience := answerPatience
	if change.Untold {
		patience = statePatience
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("asking who attends the container: %w", err)
	}
	if body, err = converse(conn, dir, body); err == nil {
		err = json.Unmarshal(body, &reply)
	}
	switch {
	case err != nil:
		return fmt.Errorf("asking who attends the container: %w", err)
	case reply.Error != nil:
		return reply.Error
	case ok == nil:
		return nil
	}
	return json.Unmarshal(reply.OK, ok)
}

// converse sends a request, and reads the answer of whoever owns the directory.
func converse(conn *net.UnixConn, dir string, request []byte) ([]byte, error) {
	var owner unix.Stat_t
	if err := unix.Lstat(dir, &owner); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	uid, err := PeerUID(conn)
	if err != nil {
		return nil, err
	}
	if uid != owner.Uid {
		return nil, fmt.Errorf("%s belongs to uid %d, and uid %d listens there", dir, owner.Uid, uid)
	}
	namespace, err := os.Open(ownPIDs)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	if err := WriteFrame(conn, request, namespace); err != nil {
		// Who refuses a caller answers without reading on.
		if answer, readErr := ReadFrame(conn); readErr == nil {
			return answer, nil
		}
		return nil, err
	}
	return ReadFrame(conn)
}
