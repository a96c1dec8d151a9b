package container

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processRef names a process so that a later one with the same pid is not
// mistaken for it.
type processRef struct {
	PID int `json:"pid"`
	// Start is the time of its start in clock ticks since boot (/proc/PID/stat, field 22).
	Start uint64 `json:"start"`
}

// refer makes a reference to a living process of this pid namespace.
func refer(pid int) (*processRef, error) {
	start, err := startTime(pid)
	if err != nil {
		return nil, fmt.Errorf("reading the start time of process %d: %w", pid, err)
	}
	return &processRef{PID: pid, Start: start}, nil
}

// open returns a pidfd of the process; os.ErrProcessDone if it has gone.
func (r processRef) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(r.PID))
	// Only now is the number pinned; check that it is still the process we mean.
	start, err := startTime(r.PID)
	switch {
	case err == nil && start == r.Start:
		return f, nil
	case err != nil && !isGone(err): // out of descriptors, say: a process that lives must not pass for dead
		return nil, errors.Join(fmt.Errorf("looking at process %d: %w", r.PID, err), f.Close())
	}
	return nil, errors.Join(os.ErrProcessDone, f.Close())
}

// isGone reports whether a file of a process could not be read because there is no process.
func isGone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// lives reports whether a process is there that is no zombie.
func lives(pid int) (bool, error) {
	fields, err := statFields(pid)
	if err != nil && isGone(err) {
		return false, nil
	}
	return err == nil && fields[0] != "Z" && fields[0] != "X", err
}

// ownEnd is how long a process gets that is about to end by itself.
const ownEnd = 5 * time.Second

// stop waits for the process to end by itself, then asks it to, then ends it.
func (r processRef) stop() error {
	f, err := r.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if ended(f, ownEnd) {
		return nil
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := signalFD(f, sig); err != nil {
			return nil //nolint:nilerr // it has gone
		}
		if ended(f, time.Second) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", r.PID)
}

// signalFD sends sig to the process of a pidfd; ErrNotRunning if it has gone.
func signalFD(pidfd *os.File, sig unix.Signal) error {
	err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0)
	if err == unix.ESRCH {
		return ErrNotRunning
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// ended waits up to d for the process of a pidfd to end (it may remain a zombie).
func ended(pidfd *os.File, d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int((left+time.Millisecond-1)/time.Millisecond))
		if n > 0 {
			return true
		}
		if err != unix.EINTR && left == 0 {
			return false
		}
	}
}

// startTime reads field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) { return statField(pid, 22) }

// exitCode reads how a process that has ended, and that nobody has waited for,
// exited: field 52 of /proc/PID/stat. 0 also for one that a signal ended.
func exitCode(pid int) (int, error) {
	status, err := statField(pid, 52)
	return int(status>>8) & 0xff, err
}

// statField reads a number from /proc/PID/stat: a field, counted from 1 as in proc(5).
func statField(pid, field int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	if len(fields) < field-2 {
		return 0, fmt.Errorf("unexpected format of /proc/%d/stat", pid)
	}
	return strconv.ParseUint(fields[field-3], 10, 64)
}

// statFields are the fields of /proc/PID/stat from the third on, the state; there is that one.
func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	// The command name, field 2, may hold spaces and brackets: count from its end.
	end := strings.LastIndexByte(string(data), ')')
	fields := strings.Fields(string(data[end+1:]))
	if end < 0 || len(fields) == 0 {
		return nil, fmt.Errorf("unexpected format of /proc/%d/stat", pid)
	}
	return fields, nil
}
