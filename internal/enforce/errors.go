package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrNotSupported is in the chain of every error which says that this host
// cannot hold a network policy. The guest must not start then, unless its policy
// allows a degraded one. The error itself is a [*NotSupportedError].
var ErrNotSupported = errors.New("not supported on this host")

// NotSupportedError says what the host lacks, and what to do about it.
type NotSupportedError struct {
	Missing string // what is missing: "cgroup2", "CAP_BPF …", "Linux 5.15 …"
	WayOut  string // what the user can do
	Err     error  // what the kernel said; may be nil
}

// Error names what is missing, the way out, and the kernel's own words.
func (e *NotSupportedError) Error() string {
	text := fmt.Sprintf("network rules cannot be enforced with eBPF: %s is missing: %s", e.Missing, e.WayOut)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap gives [ErrNotSupported] and the kernel's error.
func (e *NotSupportedError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrNotSupported}
	}
	return []error{ErrNotSupported, e.Err}
}

// explain turns a failure of the eBPF system calls into a [NotSupportedError]
// when it is the host that lacks something, and leaves any other as it is.
func explain(err error) error {
	const newer = "run a kernel with CONFIG_CGROUP_BPF, 5.15 or newer"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &NotSupportedError{"CAP_BPF and CAP_NET_ADMIN in the initial user namespace", "run as root, and not where a security module or lockdown forbids bpf()", err}
	case errors.Is(err, unix.ENOSYS):
		return &NotSupportedError{"the bpf system call", newer, err}
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		return &NotSupportedError{"a feature of Linux 5.15", newer, err}
	}
	return err
}
