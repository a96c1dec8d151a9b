package rootfs

import (
	"slices"
	"strings"

	"github.com/psi-runtime/psi/pkg/modules"
)

// unseen lists what modules built into the interpreter import, and what is imported by
// a name that is computed: nothing of that can be read in a file. Interpreters differ in
// what is built in; names that one does not have do no harm.
func unseen() map[string][]string {
	return map[string][]string{
		"_asyncio":        {"asyncio"},
		"_datetime":       {"_strptime"},
		"_decimal":        {"collections", "numbers"},
		"_elementtree":    {"copy", "pyexpat", "xml.etree.ElementPath"},
		"_pickle":         {"_compat_pickle", "codecs", "copyreg", "functools"},
		"_ssl":            {"_socket"},
		"_zoneinfo":       {"importlib.resources", "zoneinfo._common", "zoneinfo._tzpath"},
		"time":            {"_strptime"},
		"xml.sax":         {"xml.sax.expatreader"},
		"multiprocessing": {"multiprocessing.spawn", "multiprocessing.resource_tracker"},
	}
}

// interpreterNeeds lists what the interpreter itself imports after its start, in one
// version or another: encodings by name, what shows warnings and tracebacks, what the
// language's own constructs are made of.
func interpreterNeeds() []string {
	return []string{
		"__future__", "_bootlocale", "_collections_abc", "_colorize", "_strptime", "annotationlib", "collections.abc", "heapq",
		"copyreg", "encodings", "importlib._bootstrap", "importlib._bootstrap_external", "io", "linecache", "locale",
		"string.templatelib", "traceback", "types", "typing", "unicodedata", "warnings", "zipimport",
	}
}

// addUnseen adds unseen, and the modules that sysconfig imports by a computed name.
func addUnseen(all map[string]modules.Module) {
	more := unseen()
	for name := range all {
		if strings.HasPrefix(name, "_sysconfigdata") {
			more["sysconfig"] = append(more["sysconfig"], name)
		}
	}
	for name, imports := range more {
		if m, ok := all[name]; ok {
			m.Imports = resolveNames(all, name, append(imports, m.Imports...))
			all[name] = m
		}
	}
}

// base lists what a guest loads that imports nothing: what the interpreter has loaded
// when a program begins and needs later, every encoding, and the agent with what its
// functions load, as far as it is harmless. So the agent does without _socket where that
// is not part of the interpreter, and before Python 3.11, whose uuid loads subprocess,
// without UUID values.
func (b *builder) base(g *modules.Graph) []string {
	names := append(interpreterNeeds(), b.python.Loaded...)
	for name, m := range g.Modules {
		switch {
		case strings.HasPrefix(name, "encodings."):
			names = append(names, name)
		case name == agentPackage || strings.HasPrefix(name, agentPackage+"."):
			names = append(names, name)
			names = append(names, slices.DeleteFunc(slices.Clone(m.Later), func(later string) bool { return !g.Harmless(later) })...)
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { _, known := g.Modules[name]; return !known })
	slices.Sort(names)
	return slices.Compact(names)
}
