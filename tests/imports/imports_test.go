// Package imports holds the import graph of ARCHITECTURE.md against the code: the linter forbids
// single imports, this test says which package may know which, as a whole.
package imports

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/psi-runtime/psi/"

// allowed lists, for every package, the packages of ours that it may import. Arrows point down.
var allowed = map[string][]string{
	"pkg/policy":            {},
	"pkg/channel":           {},
	"pkg/channel/agenttest": {},
	"pkg/psi":               {"internal/control", "pkg/channel", "pkg/policy"},
	"bpf":                   {},
	"bpf/mkimage":           {},
	"pkg/modules":           {},
	"rootfs":                {"pkg/modules"},
	"internal/leakcheck":    {},
	"internal/testroot":     {},
	"internal/install":      {},
	"pkg/bundle":            {"pkg/modules", "pkg/policy"},
	"internal/endpoint":     {"pkg/policy"},
	"internal/enforce":      {"bpf", "internal/endpoint", "pkg/policy"},
	"internal/netproxy":     {"internal/endpoint", "pkg/policy"},
	"internal/confine":      {},
	"internal/confine/gen":  {"internal/confine", "pkg/bundle"},
	"internal/filtercache":  {},
	"internal/container":    {"internal/confine", "internal/filtercache", "pkg/policy"},
	"internal/engine":       {"internal/confine", "pkg/bundle", "pkg/modules", "pkg/policy"},
	"internal/attend":       {"internal/endpoint", "internal/enforce", "internal/netproxy", "pkg/policy"},
	"internal/control":      {"pkg/policy"},
	"internal/view":         {"internal/container", "internal/control", "pkg/bundle", "pkg/policy"},
	"internal/bridge":       {"internal/container", "internal/control", "pkg/bundle", "pkg/channel", "pkg/policy"},
	"internal/supervisor": {"internal/attend", "internal/container", "internal/control", "internal/enforce", "internal/view", "pkg/bundle",
		"pkg/channel", "pkg/policy"},
	"cmd/psi-shim": {"internal/bridge", "internal/container", "internal/supervisor", "pkg/policy"},
	"examples/go":  {"pkg/psi"},
	"cmd/psi-runtime": {"internal/attend", "internal/confine", "internal/container", "internal/control", "internal/endpoint", "internal/enforce",
		"internal/engine", "internal/install", "internal/view", "pkg/bundle", "pkg/policy", "rootfs"},
}

func TestImportsPointDown(t *testing.T) {
	cmd := exec.Command("go", "list", "-tags", "seccomp,netgo,osusergo,urfave_cli_no_docs", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for _, line := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		fields := strings.Fields(string(line))
		name := strings.TrimPrefix(fields[0], module)
		if strings.HasPrefix(name, "tests/") {
			continue
		}
		may, ok := allowed[name]
		if !ok {
			t.Errorf("package %s is not in the table: say what it may import", name)
			continue
		}
		seen++
		for _, imported := range fields[1:] {
			if ours, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s: the table does not allow it", name, ours)
			}
		}
	}
	if seen < len(allowed) {
		t.Errorf("saw %d packages of the %d in the table: remove what is gone", seen, len(allowed))
	}
}
