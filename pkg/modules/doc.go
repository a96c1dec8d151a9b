// Package modules knows which files of a root file system a Python module needs.
//
// The builder of a root (package rootfs) reads every module's source once and writes
// down what it imports: the [Graph], in the root's own file [File]. From it and a
// policy's import list follows, by [Graph.Closure], a pure function, which files a
// guest needs that may import those modules: theirs, those of what they import, their
// shared libraries, and what the interpreter and the agent need anyway.
//
//	graph, err := modules.Read(os.DirFS(root))
//	closure := graph.Closure([]string{"math"})
//	closure.Shows("usr/lib/python3.11/subprocess.py")   // false
//	hidden, err := closure.Hidden(os.DirFS(root))       // what to take away from the root
//
// A guest from whose root the rest is taken away cannot load it, whatever it does to
// the import system. Use this package to decide which files those are; how they are
// taken away is internal/container's (a layer of a guest's overlay) and pkg/bundle's
// (files that are not linked). It knows nothing of policies.
package modules
