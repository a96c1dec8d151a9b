package integration

import (
	"testing"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
)

// The filter that every guest gets is compiled when psi is. A list that has changed since
// would be compiled by libseccomp at every start, which nobody would notice but a clock.
func TestOwnFilterIsCompiledAhead(t *testing.T) {
	if !confine.IsPython(bundle.Seccomp()) {
		t.Error("internal/confine/python_amd64.filter is not of pkg/bundle's list: run `make generate` and commit the result")
	}
}
