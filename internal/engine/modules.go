package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/modules"
)

// Modules are those of a root file system, and its files, as they were when it was read: a
// container may write there, and what it writes decides nothing.
type Modules struct {
	graph *modules.Graph
	files tree
}

// ReadModules reads them. The root is hostile: no link is followed. The error wraps
// [modules.ErrNoGraph] if it does not say which modules its files are.
func ReadModules(root string) (*Modules, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readModules(r.FS())
}

func readModules(root fs.FS) (m *Modules, err error) {
	m = &Modules{files: tree{}}
	if m.graph, err = modules.Read(root); err != nil {
		return nil, err
	}
	seen := 0
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if seen++; seen > mostNames && err == nil {
			err = fmt.Errorf("it has more than %d files", mostNames)
		}
		if err == nil && name != "." {
			m.files[path.Dir(name)] = append(m.files[path.Dir(name)], entry)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the files of the image: %w", err)
	}
	return m, nil
}

// Hidden names the files and directories that an import list hides, absolute and sorted. A
// link needs no hiding: what it leads to is.
func (m *Modules) Hidden(imports []string) ([]string, error) {
	all, err := m.graph.Closure(imports).Hidden(m.files)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range all {
		if e := m.files.find(name); e != nil && (e.IsDir() || e.Type().IsRegular()) {
			names = append(names, "/"+name)
		}
	}
	return names, atMost(names, "files of the image to hide")
}

// lacking is the first name of an import list for which the root lacks the file of a module,
// its own or one that it needs; "" is none.
func (m *Modules) lacking(imports []string) (name, module string) {
	all := slices.Sorted(maps.Keys(m.graph.Modules))
	for _, name := range imports {
		closure := m.graph.Closure([]string{name})
		lacks := func(module string) bool {
			file := m.graph.Modules[module].File
			return file != "" && closure.Has(module) && m.files.find(file) == nil
		}
		if lacks(name) {
			return name, name
		}
		if at := slices.IndexFunc(all, lacks); at >= 0 {
			return name, all[at]
		}
	}
	return "", ""
}

// tree is what is in each directory of a root file system; nothing of it can be opened.
type tree map[string][]fs.DirEntry

// ReadDir makes it a [fs.ReadDirFS].
func (t tree) ReadDir(name string) ([]fs.DirEntry, error) { return t[name], nil }

// Open refuses.
func (t tree) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

func (t tree) find(name string) fs.DirEntry {
	dir := t[path.Dir(name)]
	at := slices.IndexFunc(dir, func(e fs.DirEntry) bool { return e.Name() == path.Base(name) })
	if at < 0 {
		return nil
	}
	return dir[at]
}

// reloadImports decides what is hidden of the container's modules once n.policy is in force.
func (r *Record) reloadImports(n *narrowing, out *Record, by Holds) error {
	if r.Policy.SameImports(n.policy) {
		n.out.Enforced = append(n.out.Enforced, keyed(r.Enforced, "imports")...)
		return nil
	}
	out.Files.Modules = nil
	if allowed, limited := n.policy.Imports(); limited {
		all, err := by.Modules()
		if err == nil {
			out.Files.Modules, err = all.Hidden(allowed)
		}
		switch rule := importsRule(allowed); {
		case errors.Is(err, modules.ErrNoGraph):
			return cannot(rule, "only an image that `psi-runtime rootfs` has made tells which files its modules are (%s): keep the list", modules.File)
		case err != nil:
			return fmt.Errorf("%s: %w", rule, err)
		case r.Own:
			if name, module := all.lacking(allowed); name != "" {
				return cannot(rule, "for %s its root has no file of %s, because the policy that the bundle was compiled with hides it: compile one with a policy that allows it", name, module)
			}
		default:
			n.holds(rule, maskedModules, len(out.Files.Modules))
		}
	}
	for _, dir := range bundle.Directories(slices.Concat(r.Files.Modules, out.Files.Modules)) {
		for _, place := range slices.Concat(r.Places(r.Policy), r.Places(n.policy)) {
			if covers(dir, place) || covers(place, dir) {
				return cannot("imports", "%s is mounted among its modules, in %s: keep the list", place, dir)
			}
		}
	}
	return nil
}

// importsRule is the rule of an import list in a report.
func importsRule(allowed []string) string { return fmt.Sprintf("imports: %v", allowed) }

// maskedModules is what holds one in a container that an engine made.
const maskedModules = "masked files of the image: %d"
