package modules

import (
	"maps"
	"path"
	"strings"
)

// powers are extension modules that reach further than Python and the system calls
// built into it do: native code and memory, sockets, other programs. A module that the
// import list does not name does not bring them in by what it might load later.
func powers() []string {
	return []string{
		"_cffi_backend", "_ctypes", "_multiprocessing", "_posixshmem", "_posixsubprocess", "_socket", "_ssl", "mmap",
	}
}

// openers are extension modules that load shared libraries by names that only their
// users know.
func openers() []string { return []string{"_cffi_backend", "_ctypes"} }

// Closure is what of a root file system a guest needs that may import some modules.
type Closure struct {
	graph   *Graph
	modules map[string]bool // by name
	files   map[string]bool // files of those modules, and shared libraries that they need
	known   map[string]bool // files of all modules
	places  map[string]bool // directories of all modules → whether one of those in modules lies in it
	opener  bool            // any shared library may be opened
}

// Closure follows an import list, as policies have them: a name allows the module and
// everything below it. Beside those modules the closure holds
//
//   - what the interpreter and the agent load ([Graph.Base]),
//   - everything that loading one of all these loads, and the packages around them,
//   - what functions of the allowed modules, and of those that these load, may load
//     when they are called. Of a module that the list does not name this goes only as
//     far as it brings in none of [powers]: os is needed by half of the library, and
//     os.popen loads subprocess.
//
// Names that the root does not have are passed over.
func (g *Graph) Closure(allowed []string) *Closure {
	direct := g.named(allowed)
	loaded := map[string]bool{}
	g.load(loaded, direct)
	set := maps.Clone(loaded)
	named := map[string]bool{}
	for _, name := range direct {
		named[name] = true
		g.load(set, g.later(name))
	}
	may := map[string]bool{}
	for _, name := range powers() {
		may[name] = set[name]
	}
	// One step: what comes in here is taken as it is loaded.
	for name := range loaded {
		if !named[name] {
			for _, next := range g.later(name) {
				g.loadWithin(set, next, may)
			}
		}
	}
	g.load(set, g.Base)
	return g.closure(set)
}

// named lists the modules that an import list names.
func (g *Graph) named(allowed []string) []string {
	var names []string
	for name := range g.Modules {
		for _, rule := range allowed {
			if name == rule || strings.HasPrefix(name, rule+".") {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

// later lists what a module's functions may load.
func (g *Graph) later(name string) []string {
	m := g.Modules[name]
	if !m.Open {
		return m.Later
	}
	top, _, _ := strings.Cut(name, ".")
	return append(g.named([]string{top}), m.Later...)
}

// load adds modules, and what loading them loads, to set.
func (g *Graph) load(set map[string]bool, names []string) {
	todo := append([]string{}, names...)
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		m, ok := g.Modules[name]
		if !ok || set[name] {
			continue
		}
		set[name] = true
		todo = append(todo, m.Imports...)
		if parent := strings.LastIndexByte(name, '.'); parent >= 0 {
			todo = append(todo, name[:parent])
		}
	}
}

// loadWithin is load of one module, unless that would load one of the powers that may
// does not hold.
func (g *Graph) loadWithin(set map[string]bool, name string, may map[string]bool) {
	loaded := map[string]bool{}
	g.load(loaded, []string{name})
	for _, power := range powers() {
		if loaded[power] && !may[power] {
			return
		}
	}
	maps.Copy(set, loaded)
}

// Harmless says whether loading a module brings in no module that reaches further than
// Python and the system calls built into it do.
func (g *Graph) Harmless(name string) bool {
	loaded := map[string]bool{}
	g.loadWithin(loaded, name, nil)
	return loaded[name]
}

// closure gathers the files of a set of modules.
func (g *Graph) closure(set map[string]bool) *Closure {
	c := &Closure{
		graph: g, modules: set,
		files: map[string]bool{}, known: map[string]bool{}, places: map[string]bool{},
	}
	for _, name := range openers() {
		c.opener = c.opener || set[name]
	}
	c.need(g.Program)
	for name, m := range g.Modules {
		for _, file := range g.files(m) {
			c.known[file] = true
			c.files[file] = set[name]
		}
		if m.File == "" {
			continue
		}
		for dir := path.Dir(m.File); !c.isTop(dir); dir = path.Dir(dir) {
			c.places[dir] = c.places[dir] || set[name]
		}
		if set[name] {
			c.need(m.File)
		}
	}
	return c
}

// isTop says that a directory is on sys.path, or above it: no package.
func (c *Closure) isTop(dir string) bool {
	below, ok := strings.CutPrefix(dir, c.graph.Library+"/")
	return !ok || below == "lib-dynload" || below == "site-packages"
}

// need adds the shared libraries of an object.
func (c *Closure) need(object string) {
	for _, library := range c.graph.Needs[object] {
		if !c.files[library] {
			c.files[library] = true
			c.need(library)
		}
	}
}

// Has says whether a module is in the closure.
func (c *Closure) Has(name string) bool { return c.modules[name] }

// Shows says whether the file at a path below the root is in the closure. What is
// neither a module nor a shared library is shown with the package that it lies in, and
// always if it lies in none; what looks like a module, lies in no package and is not in
// the graph is not shown.
func (c *Closure) Shows(file string) bool {
	switch {
	case c.files[file]:
		return true
	case c.known[file]:
		return false
	}
	for dir := path.Dir(file); !c.isTop(dir); dir = path.Dir(dir) {
		if shown, ok := c.places[dir]; ok {
			return shown
		}
	}
	if isLibrary(file) {
		return c.opener
	}
	return !strings.HasPrefix(file, c.graph.Library+"/") || !isCode(file)
}

func isLibrary(file string) bool {
	name := path.Base(file)
	return strings.HasSuffix(name, ".so") || strings.Contains(name, ".so.")
}

func isCode(file string) bool {
	return strings.HasSuffix(file, ".py") || strings.HasSuffix(file, ".pyc")
}
