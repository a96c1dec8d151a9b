package supervisor

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/bundle"
)

// modules shows the guest the modules of the new import list, and writes files into its
// root. What it has loaded already it keeps, and files that it has open: no directories, from
// which it could open more.
func (r *reloading) modules(files map[string][]byte) error {
	g := r.g
	next, done, err := g.s.layers.use(g.s.place, r.next, g.kind.root)
	if err != nil {
		return err
	}
	defer done()
	var covered []string
	for _, dir := range slices.Concat(g.layer.dirs, next.dirs, g.covers.Dirs()) {
		covered = append(covered, filepath.Join(dir, "x"))
	}
	dirs := bundle.Directories(covered)
	for _, m := range slices.Concat(g.shown, r.view.Shown) {
		for _, dir := range dirs {
			if strings.HasPrefix(m.Dest, "/"+dir+"/") {
				return fmt.Errorf("%w: imports of a running guest cannot change while %s is shown among its modules: spawn a new guest for it", errPolicy, m.Dest)
			}
		}
	}
	places := make([]string, len(dirs))
	for i, dir := range dirs {
		places[i] = "/" + dir
	}
	if err := busy(g.container.Unheld(places, g.socket)); err != nil {
		return err
	}
	err = r.change(container.Change{Files: files, Cover: &container.LiveLayer{
		Lower: g.kind.root.Path, Layer: next.mount, Dirs: dirs, Place: filepath.Join(g.s.place, g.id+"-modules"), Over: &g.covers,
	}})
	if err == nil {
		r.layer = next
	}
	return err
}
