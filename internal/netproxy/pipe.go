package netproxy

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errNoPipe means that the host is out of descriptors or memory for pipes.
var errNoPipe = errors.New("opening a pipe to move bytes through")

const (
	// pipeSize is how much a pipe takes at a time, in bytes.
	pipeSize = 512 << 10
	// keepPipes is how many empty pipes wait for the next bytes.
	keepPipes = 16
)

// pipePool lends pipes, through which splice moves bytes from socket to socket
// without copying them. A connection that waits for bytes holds none: a thousand
// silent connections cost no pipe. The zero value is ready.
type pipePool struct {
	mu   sync.Mutex
	free []pipe
}

// pipe is a pair of descriptors; r and w are its ends.
type pipe struct{ r, w int }

func (pool *pipePool) get() (pipe, error) {
	pool.mu.Lock()
	if last := len(pool.free) - 1; last >= 0 {
		pi := pool.free[last]
		pool.free = pool.free[:last]
		pool.mu.Unlock()
		return pi, nil
	}
	pool.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, fmt.Errorf("%w: %w", errNoPipe, err)
	}
	// A host that allows no larger pipe has a slower one.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return pipe{fds[0], fds[1]}, nil
}

// put takes back a pipe with nothing in it.
func (pool *pipePool) put(pi pipe) {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if len(pool.free) >= keepPipes {
		pi.close()
		return
	}
	pool.free = append(pool.free, pi)
}

// close closes the pipes that nobody uses; the pool can be used again.
func (pool *pipePool) close() {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	for _, pi := range pool.free {
		pi.close()
	}
	pool.free = nil
}

func (pi pipe) close() {
	_ = unix.Close(pi.r) // closing a pipe cannot lose anything
	_ = unix.Close(pi.w)
}

// fill waits for bytes from a socket and takes up to size of them into a pipe,
// which is then the caller's. No bytes and no error is end of file: no pipe.
func (pool *pipePool) fill(from syscall.RawConn, size int) (pi pipe, n int, err error) {
	var failed error
	waited := from.Read(func(fd uintptr) (done bool) {
		if pi, failed = pool.get(); failed != nil {
			return true
		}
		n, failed = splice(int(fd), pi.w, size)
		if n > 0 {
			return true
		}
		pool.put(pi)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err := errors.Join(waited, failed); err != nil {
		return pipe{}, 0, err
	}
	return pi, n, nil
}

// drain writes the n bytes that are in the pipe to a socket, waiting as needed.
func (pi pipe) drain(to syscall.RawConn, n int) error {
	for n > 0 {
		var failed error
		waited := to.Write(func(fd uintptr) (done bool) {
			var m int
			m, failed = splice(pi.r, int(fd), n)
			n -= max(m, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err := errors.Join(waited, failed); err != nil {
			return err
		}
	}
	return nil
}

// splice moves up to size bytes; it never waits. So the runtime need not be told of the
// call, and does not take its processor for a lost one after 20 µs: to get one back costs
// more than what is moved.
func splice(from, to, size int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size),
			unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
