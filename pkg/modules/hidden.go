package modules

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
)

// Hidden lists what of a root file system is outside the closure, in the order of the
// paths: files and links, and whole directories of which nothing is shown.
func (c *Closure) Hidden(root fs.FS) ([]string, error) {
	var hidden []string
	if _, err := c.hide(root, ".", &hidden); err != nil {
		return nil, fmt.Errorf("listing what the import list hides: %w", err)
	}
	slices.Sort(hidden) // "a.b" comes before "a/b", and after it in a walk
	return hidden, nil
}

// hide appends what is hidden below dir, unless nothing of it is shown: then it is the
// caller's to append dir. An empty directory is shown.
func (c *Closure) hide(root fs.FS, dir string, hidden *[]string) (shown bool, err error) {
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return false, err
	}
	shown = len(entries) == 0
	start := len(*hidden)
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		shows := !e.IsDir() && c.Shows(name)
		if e.IsDir() {
			if shows, err = c.hide(root, name, hidden); err != nil {
				return false, err
			}
		}
		if !shows {
			*hidden = append(*hidden, name)
		}
		shown = shown || shows
	}
	if !shown {
		*hidden = (*hidden)[:start]
	}
	return shown, nil
}
