package decisions

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// report is what a run found, for people: build/reports/decisions-MECHANISM.md.
type report struct {
	mechanism string
	text      strings.Builder
}

func newReport(t *testing.T, mechanism string) *report {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	r := &report{mechanism: mechanism}
	fmt.Fprintf(&r.text, "# What guests can do where %s holds file rules\n\nLinux %s. Asked of real guests; `by` is who was seen to say no.\n",
		mechanism, unix.ByteSliceToString(name.Release[:]))
	return r
}

// section begins a table; the state is that of the guest.
func (r *report) section(title string, got reply) {
	fmt.Fprintf(&r.text, "\n## %s\n\n", title)
	for _, e := range got.Enforced {
		fmt.Fprintf(&r.text, "* %s: %s\n", e.Rule, e.By)
	}
	r.text.WriteString("\n| row | answer | by |\n|---|---|---|\n")
}

func (r *report) row(name, answer, by string) {
	fmt.Fprintf(&r.text, "| `%s` | %s | %s |\n", strings.ReplaceAll(name, "|", "\\|"), answer, by)
}

func (r *report) write(t *testing.T) {
	t.Helper()
	path := filepath.Join(root(t, "build/reports"), "decisions-"+r.mechanism+".md")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(r.text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("written to %s", path)
}
