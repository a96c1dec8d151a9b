package enforce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// DenialKind says what was denied; bpf/events.h has the same numbers. The zero kind is
// that of a Denial that only says how many went untold.
type DenialKind uint16

// The kinds. Those of files have a Path, DeniedName a Name, the others but DeniedSocket an Address.
const (
	DeniedConnect   DenialKind = 1
	DeniedSend      DenialKind = 2
	DeniedBind      DenialKind = 3
	DeniedListen    DenialKind = 4
	DeniedSocket    DenialKind = 5
	DeniedName      DenialKind = 6
	DeniedRead      DenialKind = 16
	DeniedWrite     DenialKind = 17
	DeniedExec      DenialKind = 18
	DeniedCreate    DenialKind = 19
	DeniedChange    DenialKind = 20
	DeniedMount     DenialKind = 21
	DeniedUnix      DenialKind = 22
	DeniedForbidden DenialKind = 23
)

// String is the name of the operation: "connect", "read" …
func (k DenialKind) String() string {
	names := map[DenialKind]string{
		0: "", DeniedConnect: "connect", DeniedSend: "send", DeniedBind: "bind", DeniedListen: "listen", DeniedSocket: "socket", DeniedName: "unix",
		DeniedRead: "read", DeniedWrite: "write", DeniedExec: "exec", DeniedCreate: "create", DeniedChange: "change",
		DeniedMount: "mount", DeniedUnix: "unix", DeniedForbidden: "forbidden",
	}
	if name, known := names[k]; known {
		return name
	}
	return fmt.Sprintf("kind %d", uint16(k))
}

// IsFile reports the kinds that have a Path.
func (k DenialKind) IsFile() bool { return k >= DeniedRead }

// NoRule is the Rule of a denial for want of a rule.
const NoRule = -1

// Denial is one refused call of a guest, as the kernel tells it. A guest that is
// refused often is told about 50 times at once and 100 times a second; Suppressed has
// the number of those before this one that were not told. After a flood, a Denial of
// no kind brings the number of the last ones. Command, Path and Name are the guest's own
// words: any bytes but NUL, and in an abstract name that too.
type Denial struct {
	Time       time.Time
	Kind       DenialKind
	PID        int // of the process, as the host counts
	Command    string
	Path       string
	Name       string // of a unix socket, as it was given: "@…" is an abstract one; "" if it was not seen
	Address    netip.AddrPort
	Socket     [3]uint32 // family, type, protocol of DeniedSocket
	Rule       int       // index of the rule that denied, or NoRule
	Errno      syscall.Errno
	Suppressed uint64
}

// lull is how long after an event the account is looked at for untold denials.
const lull = time.Second

// denials hands the events of one ring to the guests they are about. The ring and the
// accounts are set once, before use.
type denials struct {
	ring     *ebpf.Map
	accounts *ebpf.Map
	owner    uint32 // is written down in the accounts
	running  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	reader  *ringbuf.Reader
	guests  map[uint64]*watched
	leaving []leaving
}

// leaving is a guest that goes once everything in the ring has been told.
type leaving struct {
	cgroup  uint64
	account bpf.NetAccount // its last
	gone    chan struct{}
}

// watched is a guest whose denials somebody wants to know.
type watched struct {
	told   func(Denial)
	seen   uint64    // suppressed denials that were told of
	lookAt time.Time // when to look for more; zero: not before the next event
}

// open makes the account of a guest, from which on its denials are counted.
func (d *denials) open(cgroup uint64) error {
	if err := d.accounts.Put(cgroup, bpf.NetAccount{Owner: uint64(d.owner)}); err != nil {
		return fmt.Errorf("counting denials: %w", full(err, d.accounts, "guests"))
	}
	return nil
}

func (d *denials) account(cgroup uint64) (a bpf.NetAccount, err error) {
	if err := d.accounts.Lookup(cgroup, &a); err != nil {
		return a, fmt.Errorf("reading the denials of cgroup %d: %w", cgroup, err)
	}
	return a, nil
}

// watch tells a guest's denials from now on, and starts to read if nobody does.
func (d *denials) watch(cgroup uint64, told func(Denial)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reader == nil {
		reader, err := ringbuf.NewReader(d.ring)
		if err != nil {
			return fmt.Errorf("reading denials: %w", err)
		}
		d.reader, d.guests = reader, make(map[uint64]*watched)
		d.running.Go(func() { d.read(reader) })
	}
	d.guests[cgroup] = &watched{told: told}
	return nil
}

// end closes a guest's account, after everything was told, and returns it.
func (d *denials) end(cgroup uint64) bpf.NetAccount {
	account, _ := d.account(cgroup)
	_ = d.accounts.Delete(cgroup) // it is not there after a failed open
	d.mu.Lock()
	if d.guests[cgroup] == nil {
		d.mu.Unlock()
		return account
	}
	gone := make(chan struct{})
	d.leaving = append(d.leaving, leaving{cgroup, account, gone})
	err := d.reader.Flush()
	d.mu.Unlock()
	if err != nil {
		d.release() // nobody reads any more
	}
	<-gone
	return account
}

// close ends the reading. Guests end before.
func (d *denials) close() {
	d.mu.Lock()
	reader := d.reader
	d.mu.Unlock()
	if reader != nil {
		_ = reader.Close()
		d.running.Wait()
	}
}

// read runs until the reader is closed.
func (d *denials) read(reader *ringbuf.Reader) {
	defer d.release()
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		switch {
		case err == nil:
			d.tell(record.RawSample)
			if record.Remaining > 0 {
				continue
			}
			reader.SetDeadline(time.Now().Add(lull))
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !d.look(time.Now()) {
				reader.SetDeadline(time.Time{})
				continue
			}
			reader.SetDeadline(time.Now().Add(lull))
		case errors.Is(err, ringbuf.ErrFlushed):
			d.release()
		default:
			return
		}
	}
}

// release lets those guests go that waited for the ring to be empty.
func (d *denials) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.leaving {
		if w := d.guests[l.cgroup]; w != nil {
			w.rest(l.account)
			delete(d.guests, l.cgroup)
		}
		close(l.gone)
	}
	d.leaving = nil
}

// tell hands one event to its guest; that of a guest nobody watches is nobody's.
func (d *denials) tell(sample []byte) {
	cgroup, suppressed, denial, ok := decodeDenial(sample)
	if !ok {
		return
	}
	d.mu.Lock()
	w := d.guests[cgroup]
	d.mu.Unlock()
	if w == nil {
		return
	}
	// Two processors can send their events in the other order.
	if suppressed > w.seen {
		denial.Suppressed, w.seen = suppressed-w.seen, suppressed
	}
	w.lookAt = denial.Time.Add(lull)
	w.told(denial)
}

// look tells of the denials after the last event of each guest. It returns whether it
// has to be called again.
func (d *denials) look(now time.Time) (again bool) {
	d.mu.Lock()
	due := make(map[uint64]*watched)
	for cgroup, w := range d.guests {
		if !w.lookAt.IsZero() {
			due[cgroup] = w
		}
	}
	d.mu.Unlock()
	for cgroup, w := range due {
		if now.Before(w.lookAt) {
			again = true
			continue
		}
		w.lookAt = time.Time{}
		account, err := d.account(cgroup)
		if err == nil && w.rest(account) {
			w.lookAt, again = now.Add(lull), true
		}
	}
	return again
}

// rest tells how many denials were not told, if there are any.
func (w *watched) rest(account bpf.NetAccount) bool {
	if account.Suppressed <= w.seen {
		return false
	}
	d := Denial{Time: time.Now(), Rule: NoRule, Suppressed: account.Suppressed - w.seen}
	w.seen = account.Suppressed
	w.told(d)
	return true
}

// decodeDenial reads one sample of the ring.
func decodeDenial(sample []byte) (cgroup, suppressed uint64, d Denial, ok bool) {
	var e bpf.NetEvent
	n, err := binary.Decode(sample, binary.NativeEndian, &e)
	if err != nil || len(sample) < n+int(e.PathLength) {
		return 0, 0, d, false
	}
	var command [16]byte
	for i, c := range e.Command {
		command[i] = byte(c)
	}
	name, _, _ := bytes.Cut(command[:], []byte{0})
	text := sample[n : n+int(e.PathLength)]
	d = Denial{
		Time: wallTime(e.Time), Kind: DenialKind(e.Kind), PID: int(e.Pid), Command: string(name),
		Rule: int(e.Rule), Errno: syscall.Errno(e.Error),
	}
	switch {
	case d.Kind.IsFile():
		d.Path = string(text)
	case d.Kind == DeniedName:
		d.Name = unixName(text)
	case d.Kind == DeniedSocket:
		copy(d.Socket[:], e.Address[:])
	default:
		var address [16]byte
		for i, part := range e.Address {
			binary.NativeEndian.PutUint32(address[4*i:], part)
		}
		var port [2]byte
		binary.NativeEndian.PutUint16(port[:], e.Port)
		d.Address = netip.AddrPortFrom(netip.AddrFrom16(address).Unmap(), binary.BigEndian.Uint16(port[:]))
	}
	return e.Cgroup, e.Suppressed, d, true
}

// unixName is the name of a unix socket for people. The kernel ends a path at a NUL, and
// an abstract name, which begins with one, where the caller said.
func unixName(name []byte) string {
	if len(name) > 0 && name[0] == 0 {
		return "@" + string(name[1:])
	}
	path, _, _ := bytes.Cut(name, []byte{0})
	return string(path)
}

// wallTime turns the kernel's monotonic nanoseconds into a time of day.
func wallTime(monotonic uint64) time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(now.Nano() - int64(monotonic)))
}
