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
	differ    []string // rows of the section in which a bundle decides otherwise than a guest
	others    int      // in which it refuses by another error
}

func newReport(t *testing.T, mechanism string) *report {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	r := &report{mechanism: mechanism}
	fmt.Fprintf(&r.text, "# What guests can do where %s holds file rules\n\nLinux %s. Asked of real guests of a supervisor, and of bundles that psi-runtime runs; `by` is who was seen to say no.\n",
		mechanism, unix.ByteSliceToString(name.Release[:]))
	return r
}

// section begins a table; the states are those of the guest and of the bundle.
func (r *report) section(title string, guest, bundle reply) {
	fmt.Fprintf(&r.text, "\n## %s\n", title)
	for _, of := range []struct {
		whom string
		reply
	}{{"guest", guest}, {"bundle", bundle}} {
		fmt.Fprintf(&r.text, "\nThe state of the %s:\n\n", of.whom)
		for _, e := range of.Enforced {
			fmt.Fprintf(&r.text, "* %s: %s\n", e.Rule, e.By)
		}
	}
	r.text.WriteString("\n| row | guest | by | bundle | by |\n|---|---|---|---|---|\n")
}

// row is one of the table: the guest's answer and by whom, and the bundle's.
func (r *report) row(q question, seen []string) {
	name := strings.ReplaceAll(q.name(), "|", "\\|")
	fmt.Fprintf(&r.text, "| `%s` | %s |\n", name, strings.Join(seen, " | "))
	switch {
	case (seen[0] == "ok") != (seen[2] == "ok"):
		r.differ = append(r.differ, fmt.Sprintf("* `%s`: %s, in a bundle %s: %s\n", name, seen[0], seen[2], q.why()))
	case seen[0] != seen[2]:
		r.others++
	}
}

// differences ends a table with the decisions that a bundle makes otherwise, and why.
func (r *report) differences() {
	if len(r.differ)+r.others > 0 {
		fmt.Fprintf(&r.text, "\nA bundle's files are mounts that were made with it, on every kernel. So it gets another error in %d rows, and another decision in %d:\n\n%s",
			r.others, len(r.differ), strings.Join(r.differ, ""))
	}
	r.differ, r.others = nil, 0
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
