package bundle

import (
	"testing"

	"github.com/psi-runtime/psi/pkg/policy"
)

// BenchmarkCompile is a policy made an OCI specification.
func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(policy.Defaults(), anyRoot(), View{}, Entry{}); err != nil {
			b.Fatal(err)
		}
	}
}
