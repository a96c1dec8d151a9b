package container

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
)

// Sentinels; test with errors.Is. The texts are those that engines match.
var (
	// ErrNotExist: there is no container of that id below that root.
	ErrNotExist = libcontainer.ErrNotExist
	// ErrExist: the id is taken.
	ErrExist = libcontainer.ErrExist
	// ErrInvalidID: an id is one or more of [A-Za-z0-9_+-.] and no path.
	ErrInvalidID = libcontainer.ErrInvalidID
	// ErrNotRunning: the container's first process has ended or never was.
	ErrNotRunning = libcontainer.ErrNotRunning
	// ErrNotPaused: Resume of a container that is not paused.
	ErrNotPaused = libcontainer.ErrNotPaused
	// ErrNotCreator: Wait was called by a process that did not create the container.
	ErrNotCreator = errors.New("only the process that created a container can wait for it")
	// ErrOwned: another living process owns the container's journal.
	ErrOwned = errors.New("container is owned by another running process")
)

// GuestError is a failure that the bundle or its program caused, as opposed to
// one of the host: a missing executable, a mount that cannot be made, a
// working directory that does not exist. Both end Create, neither leaves anything.
type GuestError struct {
	ID  string
	Err error
}

func (e *GuestError) Error() string { return fmt.Sprintf("starting container %s: %v", e.ID, e.Err) }

// Unwrap gives errors.Is and errors.As the cause.
func (e *GuestError) Unwrap() error { return e.Err }
