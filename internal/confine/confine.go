package confine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Confinement is what psi-init puts on before it executes the program. The zero
// value is nothing.
type Confinement struct {
	// Filters are seccomp programs as [Compile] makes them, put on in this order.
	Filters [][]byte
	// Guard, if not nil, lists what psi-init has and the program must not get.
	Guard *Guard
	// Domain lists all that may be done with files; nil is no Landlock domain.
	Domain []Rule
}

// None reports whether there is nothing to put on.
func (c Confinement) None() bool { return len(c.Filters) == 0 && c.Domain == nil }

// Calls are the system calls that psi-init needs: a seccomp filter that is on
// already has to allow them.
func (c Confinement) Calls() []string {
	calls := []string{"mmap", "close", "prctl", "execve", "capget", "capset"} // the last two for Guard
	if len(c.Filters) > 0 {
		calls = append(calls, "seccomp")
	}
	if c.Domain != nil {
		calls = append(calls, "openat", "statx", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
	}
	return calls
}

// Wrap returns the arguments that run args under the confinement, and the file which
// the process must have as descriptor fd (3 or more) for that. The caller closes it.
func (c Confinement) Wrap(args []string, fd int) ([]string, *os.File, error) {
	if len(args) == 0 || fd < 3 {
		return nil, nil, fmt.Errorf("wrapping a process in psi-init: %d arguments, descriptor %d", len(args), fd)
	}
	program, err := program()
	if err != nil {
		return nil, nil, err
	}
	orders, err := c.orders()
	if err != nil {
		return nil, nil, err
	}
	f, err := sealed(program, orders)
	if err != nil {
		return nil, nil, fmt.Errorf("making psi-init: %w", err)
	}
	n := strconv.Itoa(fd)
	head := []string{"/proc/self/fd/" + n, n, strconv.Itoa(len(program)), strconv.Itoa(len(orders))}
	return append(head, args...), f, nil
}

// The kinds of an order, as psi-init.c has them.
const (
	orderDomain = iota + 1
	orderRule
	orderRestrict
	orderFilter
	orderGuard
)

// orders writes what psi-init is to do. The domain comes first: a filter may forbid
// the calls that make one.
func (c Confinement) orders() ([]byte, error) {
	var b bytes.Buffer
	order := func(kind uint32, access uint64, data []byte) {
		header := binary.LittleEndian.AppendUint32(nil, kind)
		header = binary.LittleEndian.AppendUint32(header, uint32(len(data)))
		b.Write(binary.LittleEndian.AppendUint64(header, access))
		b.Write(data)
		b.Write(make([]byte, -len(data)&7))
	}
	if c.Guard != nil {
		inheritable, bounding, permitted := c.Guard.bits()
		order(orderGuard, inheritable, binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, bounding), permitted))
	}
	if c.Domain != nil {
		abi, err := LandlockABI()
		if err != nil {
			return nil, err
		}
		order(orderDomain, handled(abi), nil)
		for _, r := range c.Domain {
			path, err := r.path()
			if err != nil {
				return nil, err
			}
			order(orderRule, r.Access.bits()&handled(abi), path)
		}
		order(orderRestrict, 0, nil)
	}
	for _, program := range c.Filters {
		const instruction, most = 8, 4096 // bytes, and the kernel's limit of instructions
		if len(program) == 0 || len(program)%instruction != 0 || len(program) > most*instruction {
			return nil, fmt.Errorf("a seccomp filter of %d bytes is no program", len(program))
		}
		order(orderFilter, 0, program)
	}
	return b.Bytes(), nil
}

// sealed makes a file in memory that can be executed and nobody can change: the
// container holds it too, for a moment.
func sealed(parts ...[]byte) (_ *os.File, err error) {
	const mfdExec = 0x10 // since Linux 6.3; where it is unknown every memfd can be executed
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("psi-init", flags|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("psi-init", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "psi-init")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	for _, part := range parts {
		if _, err := f.Write(part); err != nil {
			return nil, err
		}
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, os.NewSyscallError("sealing", err)
	}
	return f, nil
}
