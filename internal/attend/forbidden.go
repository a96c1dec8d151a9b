package attend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/internal/netproxy"
)

// Forbidden are the connections in an engine's network that a new policy forbids. Those
// that pass through the proxy it cuts by itself.
type Forbidden struct {
	netns *os.File
	found netproxy.Forbidden
}

// Forbidden finds what the policy in force forbids of what the container has connected.
// It must be frozen. udp: an earlier policy allowed datagrams. Close what it returns.
func (a *Attendant) Forbidden(udp bool) (*Forbidden, error) {
	f := &Forbidden{}
	if a.net.proxy != nil || a.net.guest == nil {
		return f, nil
	}
	dir, err := a.c.UnifiedCgroup()
	if err != nil {
		return nil, err
	}
	groups, err := groupIDs(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for the container's cgroups: %w", err)
	}
	if f.netns, err = a.c.NetNS(); err != nil {
		return nil, err
	}
	if f.found, err = netproxy.FindForbidden(f.netns, groups, addressesOnly(a.policy.Load().Endpoints()), udp); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Cut resets them.
func (f *Forbidden) Cut() error { return f.found.Cut() }

// Close must be called, whether they were cut or not.
func (f *Forbidden) Close() error {
	if f.netns == nil {
		return nil
	}
	return f.netns.Close()
}

// groupIDs are the numbers of a cgroup2 directory and those below it.
func groupIDs(dir string) (map[uint64]bool, error) {
	ids := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.IsDir() {
			return nil // its process ended, and somebody removed it
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(path, &st)
		}
		ids[st.Ino] = true
		return err
	})
	return ids, err
}

// Holds tells what holds the container's rules from outside: programs at its cgroup, or
// why not, and LSM programs.
func (a *Attendant) Holds() (network error, files bool) {
	switch {
	case a.net.unsupported != nil:
		network = a.net.unsupported
	case a.net.guest == nil:
		network = enforce.ErrNotSupported
	}
	return network, a.files.guest != nil
}
