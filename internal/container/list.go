package container

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// List returns the states of the containers below root ("" is the default), and
// an error for each that could not be read. A root that does not exist has none,
// unless it was named.
func List(root string) ([]State, error) {
	named := root != ""
	if !named {
		root = defaultRunDir()
	}
	items, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	var states []State
	var errs []error
	for _, item := range items {
		if !item.IsDir() || !validID(item.Name()) {
			continue
		}
		state, err := loadState(root, item.Name())
		if errors.Is(err, ErrNotExist) {
			continue // being made, or being deleted
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		states = append(states, state)
	}
	return states, errors.Join(errs...)
}

func loadState(root, id string) (State, error) {
	c, err := Load(root, id)
	if err != nil {
		return State{}, err
	}
	defer c.Close()
	return c.State()
}

// ownerName is the name of the user who owns path, or "#uid".
func ownerName(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return ""
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	uid := strconv.FormatUint(uint64(sys.Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "#" + uid
}

// Purge removes what a failed or killed creation left under a container's name:
// a state directory without a state in it, and what its journal names.
// ErrNotExist if there is nothing, ErrOwned if the creation is still going on.
func Purge(root, id string) error {
	if root == "" {
		root = defaultRunDir()
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	if !validID(id) {
		return fmt.Errorf("%w: %q", ErrInvalidID, id)
	}
	e, err := findEntry(root, id)
	if err == nil {
		e, err = takeEntry(e.path)
	}
	if errors.Is(err, ErrNotExist) {
		return purgeState(root, id)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	run := runDir(filepath.Dir(e.path))
	return errors.Join(e.undo(run), run.tidy(e.commonGroups()))
}

// purgeState removes a state directory that has no journal, as long as it holds no
// state.
func purgeState(root, id string) error {
	dir := filepath.Join(root, id)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return ErrNotExist
	}
	if _, err := os.Lstat(filepath.Join(dir, "state.json")); err == nil {
		return fmt.Errorf("container %s has a state: delete it", id)
	}
	return os.RemoveAll(dir)
}
