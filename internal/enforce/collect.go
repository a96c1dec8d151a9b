package enforce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

// Collect removes what killed processes left: every version of the programs, of the network and of
// files, that nobody uses any more, and what is of no more use in this one. It returns what it removed.
func Collect() (removed []string, err error) {
	if _, err := os.Stat(pinRoot); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockPins()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	versions, err := os.ReadDir(pinRoot)
	if err != nil {
		return nil, fmt.Errorf("looking for pinned programs: %w", err)
	}
	left := 0
	for _, v := range versions {
		gone, used, err := collectVersion(filepath.Join(pinRoot, v.Name()))
		removed = append(removed, gone...)
		if err != nil {
			return removed, err
		}
		if used {
			left++
		}
	}
	if left == 0 {
		err = os.Remove(pinRoot)
	}
	return removed, err
}

// collectVersion removes a version that has no guest, and is in no process's use.
func collectVersion(dir string) (removed []string, used bool, err error) {
	lock, err := lockDir(dir, unix.LOCK_EX)
	if err != nil {
		return nil, false, err
	}
	defer lock.Close()
	live, err := liveGuests(dir)
	if err != nil {
		return nil, false, err
	}
	owned, err := hasLiveOwner(dir)
	if err != nil {
		return nil, false, err
	}
	switch {
	case live == 0 && !owned:
		return []string{dir}, false, unpin(dir)
	case dir != netDir():
		return nil, true, nil
	}
	var objects bpf.NetObjects
	if err = openNet(dir, &objects); err == nil {
		removed, err = sweepOwners(dir, &objects)
	}
	return removed, true, errors.Join(err, objects.Close())
}

// liveGuests counts the guests of one version. Every version has a map "guests"
// whose keys are cgroup ids.
func liveGuests(dir string) (int, error) {
	guests, err := ebpf.LoadPinnedMap(filepath.Join(dir, "guests"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // somebody was killed while pinning
	}
	if err != nil {
		return 0, fmt.Errorf("opening %s: %w", dir, err)
	}
	defer guests.Close()
	_, live, err := goneGuests(guests, cgroup2Root())
	return live, err
}

// hasLiveOwner reports whether a process that has maps of its own in a version lives.
func hasLiveOwner(dir string) (bool, error) {
	entries, err := os.ReadDir(filepath.Join(dir, ownersName))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // programs of files have none
	}
	if err != nil {
		return false, fmt.Errorf("looking for processes that use %s: %w", dir, err)
	}
	for _, e := range entries {
		lock, err := lockDir(filepath.Join(dir, ownersName, e.Name()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			lock.Close()
		case errors.Is(err, unix.EWOULDBLOCK):
			return true, nil
		case !errors.Is(err, os.ErrNotExist): // released meanwhile
			return false, err
		}
	}
	return false, nil
}
