package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// StateDirs are the state directories of the containers with this id, whatever root they
// were made below: engines that call psi-runtime with roots of their own tell nobody which.
func StateDirs(id string) ([]string, error) {
	dir := defaultRunDir()
	items, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for container %s: %w", id, err)
	}
	var found []string
	for _, item := range items {
		if item.IsDir() || !strings.HasPrefix(item.Name(), id+"@") {
			continue // a directory is what a guest's root is mounted on
		}
		e, err := loadEntry(filepath.Join(dir, item.Name()))
		if errors.Is(err, ErrNotExist) {
			continue // it has just been deleted
		}
		if err != nil {
			return nil, fmt.Errorf("looking for container %s: %w", id, err)
		}
		found = append(found, e.stateDir())
	}
	return found, nil
}
