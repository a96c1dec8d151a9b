// Package view opens what a policy shows of the host to a guest that runs, and finds the way
// from what it is shown to that. Both who attend guests use it: the supervisor, with the
// rights of its client, and psi-runtime, with its own.
//
// Between the moment a path is checked and the moment it is mounted whoever owns a directory
// on the way can put another thing, or a symlink, in its place. So [Open] opens each path
// once, as the one whose rights count and without following links that the plan did not
// follow, checks what it opened, and exactly that is mounted, by descriptor.
//
// It mounts nothing itself: that is internal/container's. What a policy's rules come to on a
// host is pkg/bundle's.
package view

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Shown is one mount of a view. Two that are equal show the same thing in the same way.
type Shown struct {
	bundle.ViewMount        // Source is the host's path
	Dev, Ino         uint64 // of what was found there
}

// Plan finds out what a policy's file rules show: [bundle.PlanView], or [bundle.PlanLive].
type Plan func(policy.Policy) (bundle.View, error)

// Opened is a view whose sources are open.
type Opened struct {
	Notes []string
	Shown []Shown
	files []*os.File // of Shown, in the same order
}

// Close closes the sources. What was mounted stays.
func (v Opened) Close() {
	for _, f := range v.files {
		_ = f.Close()
	}
}

// Open plans what the policy shows of the host and opens it, with somebody's own
// permissions. Close it.
func Open(p policy.Policy, who Identity, planned Plan) (view Opened, err error) {
	if len(p.FS()) == 0 {
		return view, nil
	}
	err = as(who, func() error {
		plan, err := planned(p)
		if err != nil {
			return fmt.Errorf("%w: %w", control.ErrPolicy, err)
		}
		view.Notes = plan.Notes
		for _, m := range plan.Mounts {
			file, err := openSource(m, who)
			if err != nil {
				return err
			}
			view.files = append(view.files, file)
			var stat unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
				return &os.PathError{Op: "stat", Path: m.Source, Err: err}
			}
			view.Shown = append(view.Shown, Shown{m, stat.Dev, stat.Ino})
		}
		return nil
	})
	if err != nil {
		view.Close()
		return Opened{}, err
	}
	return view, nil
}

// openSource opens what is to be shown and checks that whose rights count may use it
// the way the policy asks.
func openSource(m bundle.ViewMount, who Identity) (*os.File, error) {
	refuse := func(what string, err error) error {
		return fmt.Errorf("%w: fs rule for %s: %v %s: %w", control.ErrPolicy, m.Source, who, what, err)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, m.Source, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, refuse("cannot open it", err)
	}
	file := os.NewFile(uintptr(fd), m.Source)
	if err := checkSource(file, m, refuse); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func checkSource(file *os.File, m bundle.ViewMount, refuse func(string, error) error) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return refuse("cannot look at it", err)
	}
	kind, mode := uint32(unix.S_IFREG), uint32(unix.R_OK)
	if m.Dir {
		kind, mode = unix.S_IFDIR, unix.R_OK|unix.X_OK
	}
	if stat.Mode&unix.S_IFMT != kind {
		return refuse("cannot show it", errors.New("it changed its type while the policy was read"))
	}
	if m.Write {
		mode |= unix.W_OK
	}
	// AT_EACCESS is what makes this ask with the thread's file-system identity.
	err := unix.Faccessat2(int(file.Fd()), "", mode, unix.AT_EMPTY_PATH|unix.AT_EACCESS)
	if err != nil {
		return refuse(map[bool]string{false: "may not read it", true: "may not read and write it"}[m.Write], err)
	}
	return nil
}
