package engine

import (
	"slices"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// kernelFiles hides and protects the files of /proc and /sys as in a guest of psi's
// own, whatever the engine was told to unmask.
func (n *narrowing) kernelFiles() error {
	linux := n.spec.Linux
	for _, name := range bundle.MaskedPaths() {
		n.mask(name)
	}
	linux.ReadonlyPaths = union(linux.ReadonlyPaths, bundle.ReadonlyPaths())
	return nil
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
