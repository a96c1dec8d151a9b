// Package conformance runs the validation programs of opencontainers/runtime-tools against
// psi-runtime and against the peer, Debian's runc, in one job, and holds the outcome against
// expect.txt: a program passes, or the file says which fact of the machine or of the suite keeps
// every runtime, or any that follows the specification, from passing it. What runc passes, psi
// passes.
//
// A program is one process that calls the runtime as an engine would and prints TAP. It has passed
// when it ended with 0 and printed no "not ok".
package conformance

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

const (
	built = "../../../build/conformance"
	// patience is for one program: the suite itself waits ten seconds at most, some of them twice.
	patience = 4 * time.Minute
)

// least is how many of the programs must pass, by place: what the suite knows of cgroups is v1.
var least = map[string]int{"host": 41, "vm": 36}

// slowly stands between a program that races with its container and the runtime, so that the program
// wins: what it signals has had time to begin, and `true`, which it wants to kill, has not ended.
const slowly = `
case $1 in
kill) sleep 2 ;;
create) for word; do
	if [ -e "$word/config.json" ]; then # the bundle, which is its root too
		rm "$word/bin/true"
		printf '#!/bin/sh\nexec sleep 60\n' >"$word/bin/true"
		chmod +x "$word/bin/true"
	fi
done ;;
esac`

// outcome is what one program said of one runtime.
type outcome struct {
	ran, passed bool
	output      string
}

// table collects the outcomes of all programs; the subtests that fill it run side by side.
type table struct {
	mu   sync.Mutex
	rows map[string]row
}

type row struct {
	psi, runc outcome
}

func (t *table) add(program string, r row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[program] = r
}

func TestValidation(t *testing.T) {
	leakcheck.Check(t)
	programs := build(t)
	expected, err := readExpectations("expect.txt", place())
	if err != nil {
		t.Fatal(err)
	}
	for program := range expected {
		if !slices.Contains(programs, program) {
			t.Errorf("expect.txt names %s, which is no program of the suite", program)
		}
	}
	runtimes := [2]*runtime{newRuntime(t, "psi", psiRuntime(t)), newRuntime(t, "runc", "/usr/sbin/runc")}
	results := &table{rows: map[string]row{}}
	t.Cleanup(func() { results.report(t, programs, expected) })
	for _, program := range programs {
		t.Run(program, func(t *testing.T) {
			if !sharesCgroup(program) {
				t.Parallel()
			}
			slow := expected[program].kind == race
			r := row{psi: runtimes[0].validate(t, program, slow)}
			// The peer on the slow kernel: only where it could say that psi-runtime is wrong.
			if place() == "host" || !r.psi.passed {
				r.runc = runtimes[1].validate(t, program, slow)
			}
			results.add(program, r)
			judge(t, r, expected[program])
		})
	}
}

// judge compares an outcome with what expect.txt says.
func judge(t *testing.T, r row, e expectation) {
	must := e.kind == "" || e.kind == race
	switch {
	case must && !r.psi.passed && r.runc.passed:
		t.Errorf("runc passes, psi-runtime does not:\n%s", r.psi.output)
	case must && !r.psi.passed:
		t.Errorf("fails, and expect.txt does not say why:\n%s", r.psi.output)
	case !must && r.psi.passed:
		t.Errorf("passes now: take its line out of expect.txt (%s: %s)", e.kind, e.reason)
	case !must && r.runc.passed:
		t.Errorf("runc passes what expect.txt says cannot be passed (%s: %s):\n%s", e.kind, e.reason, r.psi.output)
	}
}

// report writes the one table, and holds the least number of passes when every program ran.
func (t *table) report(tb testing.TB, programs []string, expected map[string]expectation) {
	var out strings.Builder
	var psi, runc int
	verdict := func(o outcome, count *int) string {
		switch {
		case !o.ran:
			return "-"
		case o.passed:
			*count++
			return "pass"
		}
		return "fail"
	}
	for _, program := range programs {
		r, ok := t.rows[program]
		if !ok {
			continue // not asked for by -run
		}
		e := expected[program]
		reason := ""
		if e.kind != "" {
			reason = e.kind + ": " + e.reason
		}
		fmt.Fprintf(&out, "%-32s %-4s  %-4s  %s\n", program, verdict(r.psi, &psi), verdict(r.runc, &runc), reason)
	}
	summary := fmt.Sprintf("%-32s %-4d  %-4d  of %d", "passed", psi, runc, len(t.rows))
	tb.Logf("\n%-32s %-4s  %-4s\n%s%s", "program", "psi", "runc", out.String(), summary)
	if least := least[place()]; len(t.rows) == len(programs) && psi < least {
		tb.Errorf("%d of %d programs pass, want at least %d", psi, len(programs), least)
	}
}

// build makes the programs, where there is a Go to do it, and lists them.
func build(t *testing.T) []string {
	t.Helper()
	if place() == "host" {
		if out, err := exec.Command("../../../scripts/conformance").CombinedOutput(); err != nil {
			t.Fatalf("building the suite: %v\n%s", err, out)
		}
	}
	entries, err := os.ReadDir(filepath.Join(built, "programs"))
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	for _, entry := range entries {
		programs = append(programs, entry.Name())
	}
	return programs
}

// place is where the test runs: on this machine's hybrid cgroups, or in the virtual machine.
func place() string {
	if os.Getenv("PSI_TEST_VM") != "" {
		return "vm"
	}
	return "host"
}

// sharesCgroup reports whether a program uses the suite's fixed cgroups: those run one at a time.
func sharesCgroup(program string) bool {
	return strings.Contains(program, "cgroups") || strings.HasPrefix(program, "delete_")
}

// runtime is a runtime as the suite takes it: one program without arguments. All its containers are
// kept in a directory of their own, for the suite leaves some behind.
type runtime struct {
	name    string
	wrapper string
	slow    string // the same, for programs that race
}

func psiRuntime(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PSI_RUNTIME")
	if path == "" {
		path = "../../../bin/psi-runtime"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the tests need the built program: run `make build`: %v", err)
	}
	return path
}

func newRuntime(t *testing.T, name, path string) *runtime {
	t.Helper()
	dir, err := os.MkdirTemp("", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &runtime{name: name, wrapper: filepath.Join(dir, name), slow: filepath.Join(dir, "slow-"+name)}
	for wrapper, first := range map[string]string{r.wrapper: "", r.slow: slowly} {
		script := fmt.Sprintf("#!/bin/sh%s\nexec %s --root %s/state \"$@\"\n", first, path, dir)
		if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.deleteAll(t) })
	return r
}

// deleteAll removes the containers, and the groups above them, that the suite left.
func (r *runtime) deleteAll(t *testing.T) {
	out, err := exec.Command(r.wrapper, "list", "-q").Output()
	if err != nil {
		t.Errorf("listing what the suite left: %v", err)
	}
	for _, id := range strings.Fields(string(out)) {
		if out, err := exec.Command(r.wrapper, "delete", "--force", id).CombinedOutput(); err != nil {
			t.Errorf("deleting %s: %v\n%s", id, err, out)
		}
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Error(err)
		return
	}
	for line := range strings.Lines(string(data)) {
		_, own, _ := strings.Cut(strings.TrimSpace(line), "::")
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			own = parts[2]
		}
		for _, hierarchy := range []string{"", "*"} {
			for _, group := range []string{filepath.Join(own, "testdir/cgrouptest"), filepath.Join(own, "testdir"), "cgrouptest"} {
				found, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", hierarchy, group))
				for _, dir := range found {
					os.Remove(dir) // the runtime removes its own group; a group in use stays
				}
			}
		}
	}
}

// validate runs one program.
func (r *runtime) validate(t *testing.T, program string, slow bool) outcome {
	t.Helper()
	wrapper := r.wrapper
	if slow {
		wrapper = r.slow
	}
	// The bundles go into a directory that containers with other users can reach.
	tmp, err := os.MkdirTemp("", "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "programs/"+program)
	cmd.Dir = built
	cmd.Env = append(os.Environ(), "RUNTIME="+wrapper, "TMPDIR="+tmp)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	// Containers without a mount namespace mount into the program's, which goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	return outcome{true, err == nil && !failed(output.String()), concise(output.String())}
}

// failed reports whether TAP output has a failed point.
func failed(tap string) bool {
	for line := range strings.Lines(tap) {
		if strings.HasPrefix(line, "not ok") {
			return true
		}
	}
	return false
}

// concise leaves the points out that were passed.
func concise(tap string) string {
	var kept strings.Builder
	for line := range strings.Lines(tap) {
		if !strings.HasPrefix(line, "ok ") {
			kept.WriteString(line)
		}
	}
	text := kept.String()
	return text[max(0, len(text)-4000):]
}
