package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// supervisors is how the abstract names of the sockets begin at which supervisors listen
// for root's tools.
const supervisors = "@psi/supervisor/"

// SupervisorName is the abstract socket name of the supervisor that is this owner.
func SupervisorName(owner string) string { return supervisors + owner }

// PeerUID is the user at the other end of a connection.
func PeerUID(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner == nil {
			uid = cred.Uid
		}
	})
	return uid, errors.Join(err, inner)
}

// ErrNoGuest means that no supervisor of this host has the guest.
var ErrNoGuest = errors.New("no supervisor of this host runs such a guest")

// Tool is a connection of one of root's tools to the supervisor that has a guest.
type Tool struct {
	conn     *net.UnixConn
	receiver *Receiver
	last     uint64
	pushed   []json.RawMessage // came while a reply was awaited
}

// FindGuest connects to the supervisor whose guest this user may reload.
func FindGuest(guest, client string) (*Tool, error) {
	return findGuest(client, false, func(t *Tool) (found bool, err error) {
		var reply struct {
			Found bool `json:"found"`
		}
		err = t.Ask("find", map[string]any{"guest": guest}, &reply)
		return reply.Found, err
	})
}

// WatchGuest connects to the supervisor that runs a guest of this user's own, whose
// events are then pushed.
func WatchGuest(guest, client string) (*Tool, error) {
	return findGuest(client, true, isOwn(guest))
}

// OwnGuest connects to the supervisor that runs a guest of this user's own.
func OwnGuest(guest, client string) (*Tool, error) {
	return findGuest(client, false, isOwn(guest))
}

func isOwn(guest string) func(*Tool) (bool, error) {
	return func(t *Tool) (found bool, err error) {
		var reply struct {
			Guests []struct {
				Guest string `json:"guest"`
			} `json:"guests"`
		}
		err = t.Ask("list", nil, &reply)
		for _, g := range reply.Guests {
			found = found || g.Guest == guest
		}
		return found, err
	}
}

func findGuest(client string, watch bool, has func(*Tool) (bool, error)) (*Tool, error) {
	names, err := listening(supervisors)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		tool, err := dialTool(name, client, watch)
		if err != nil {
			continue // it ended just now, or is not what its name says
		}
		if found, err := has(tool); err == nil && found {
			return tool, nil
		}
		_ = tool.Close()
	}
	return nil, ErrNoGuest
}

// listening lists the abstract socket names with a prefix.
func listening(prefix string) (names []string, err error) {
	file, err := os.Open("/proc/self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("looking for supervisors: %w", err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		// Num RefCount Protocol Flags Type St Inode Path; Flags has __SO_ACCEPTCON
		if len(fields) == 8 && fields[3] == "00010000" && strings.HasPrefix(fields[7], prefix) {
			names = append(names, fields[7])
		}
	}
	return names, lines.Err()
}

func dialTool(name, client string, watch bool) (*Tool, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	t := &Tool{conn: conn, receiver: NewReceiver(conn)}
	// Anybody can listen under such a name.
	uid, err := PeerUID(conn)
	if err == nil && uid != uint32(os.Geteuid()) {
		err = fmt.Errorf("%s is served by uid %d", name, uid)
	}
	if err == nil {
		err = t.Ask("hello", map[string]any{"version": Version, "client": client, "watch": watch}, nil)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

// Refusal is an error that the supervisor answered.
type Refusal struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func (r *Refusal) Error() string { return r.Message }

// Ask makes a request and decodes its reply into ok, if that is not nil. A refusal is a
// [*Refusal].
func (t *Tool) Ask(op string, fields map[string]any, ok any) error {
	file, err := t.AskFile(op, fields, ok)
	if file != nil {
		_ = file.Close()
	}
	return err
}

// AskFile is Ask for a reply that carries a descriptor; nil if it carries none.
func (t *Tool) AskFile(op string, fields map[string]any, ok any) (*os.File, error) {
	t.last++
	request := map[string]any{"id": t.last, "op": op}
	for key, value := range fields {
		request[key] = value
	}
	body, err := json.Marshal(request)
	if err == nil {
		err = WriteFrame(t.conn, body, nil)
	}
	for err == nil {
		var reply struct {
			ID    *uint64         `json:"id"`
			OK    json.RawMessage `json:"ok"`
			Error *Refusal        `json:"error"`
		}
		var body []byte
		var files []*os.File
		if body, files, err = t.receiver.Receive(); err != nil {
			break
		}
		if err = json.Unmarshal(body, &reply); err != nil || len(files) > 1 {
			closeAll(files)
			err = errors.Join(err, fmt.Errorf("%w: a reply with %d descriptors", ErrProtocol, len(files)))
			break
		}
		switch {
		case reply.ID == nil:
			closeAll(files)
			t.pushed = append(t.pushed, body)
			continue
		case reply.Error != nil:
			closeAll(files)
			return nil, reply.Error
		case ok != nil:
			err = json.Unmarshal(reply.OK, ok)
		}
		if len(files) == 0 {
			return nil, err
		}
		return files[0], err
	}
	return nil, fmt.Errorf("asking the supervisor for %s: %w", op, err)
}

// Next returns the next message that nobody asked for. io.EOF is the supervisor's end.
func (t *Tool) Next() (json.RawMessage, error) {
	if len(t.pushed) > 0 {
		message := t.pushed[0]
		t.pushed = t.pushed[1:]
		return message, nil
	}
	return t.receive()
}

func (t *Tool) receive() ([]byte, error) {
	body, files, err := t.receiver.Receive()
	closeAll(files)
	return body, err
}

// Close ends the connection.
func (t *Tool) Close() error { return t.conn.Close() }
