package integration

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// The filters that guests get are compiled when psi is. A list that has changed since
// would be compiled by libseccomp at every start, which nobody would notice but a clock.
func TestOwnFilterIsCompiledAhead(t *testing.T) {
	for _, text := range []string{"{}", "udp: ['10.0.0.1:53']", "expose: [8000]", "{udp: ['10.0.0.1:53'], expose: [8000]}"} {
		p, err := policy.Parse([]byte(text), "test.yml")
		if err != nil {
			t.Fatal(err)
		}
		spec, err := bundle.Compile(p, bundle.RootfsInfo{Path: "/srv/rootfs", Python: "3.11", Digest: "sha256:" + strings.Repeat("0", 64), Interpreter: "/usr/bin/python3.11", Agent: "/usr/lib/psi/agent.pyc"}, bundle.View{}, bundle.Entry{})
		if err != nil {
			t.Fatal(err)
		}
		for _, filter := range []*specs.LinuxSeccomp{spec.Linux.Seccomp, bundle.SeccompWithPairs(p)} {
			if confine.Ready(filter) == "" {
				t.Errorf("internal/confine/filters has none of the policy %s: run `make generate` and commit the result", text)
			}
		}
	}
	if confine.Ready(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}) != "" {
		t.Error("an engine's filter is taken for psi's own")
	}
}
