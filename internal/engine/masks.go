package engine

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mask hides a path for life.
func (n *narrowing) mask(name string) {
	n.kept = union(n.kept, []string{name})
	n.spec.Linux.MaskedPaths = union(n.spec.Linux.MaskedPaths, []string{name})
}

// maskDenied hides a path because a rule says so.
func (n *narrowing) maskDenied(name string) {
	n.masks = union(n.masks, []string{name})
	n.spec.Linux.MaskedPaths = union(n.spec.Linux.MaskedPaths, []string{name})
}

// settleMasks says which masks may be taken away again, and puts those that an engine has
// not asked for in an order in which each finds its place: what is in a directory before
// the directory, so that it is hidden still when that is shown again.
func (n *narrowing) settleMasks(given *specs.Spec) {
	all, asked := n.spec.Linux.MaskedPaths, 0
	if given.Linux != nil {
		asked = len(given.Linux.MaskedPaths)
		n.kept = append(n.kept, given.Linux.MaskedPaths...)
	}
	slices.SortFunc(all[asked:], deeperFirst)
	other := func(name string) bool { return slices.Contains(n.kept, name) }
	n.out.Files.Masks, n.out.Files.Modules = slices.DeleteFunc(n.masks, other), slices.DeleteFunc(n.modules, other)
}

// deeperFirst sorts what is in a directory before the directory.
func deeperFirst(a, b string) int {
	if a < b {
		return 1
	}
	if a > b {
		return -1
	}
	return 0
}

// notShown is the error for a volume of which a policy opens nothing.
type notShown string

func (e notShown) Error() string { return string(e) }
