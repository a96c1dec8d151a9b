// Package peers compares psi-runtime with crun, which runs where cgroups are pure v2: on the
// second kernel. A container takes seconds on that emulated machine; what counts is the ratio.
//
// Not for correctness: tests/integration is.
package peers

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

const runs = 5

// TestCold times both runtimes in turn with the same bundle, and prints a line for `make bench`.
func TestCold(t *testing.T) {
	leakcheck.Check(t)
	runtime, bundle := os.Getenv("PSI_RUNTIME"), filepath.Join(t.TempDir(), "bundle")
	if runtime == "" || os.Getenv("PSI_TEST_VM") == "" {
		t.Fatal("this runs on the second kernel: make test-vm SUITE=tests/integration/peers")
	}
	entry := filepath.Join(t.TempDir(), "one.py")
	if err := os.WriteFile(entry, []byte("print(1)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, filepath.Dir(bundle))
	run(t, runtime, "bundle", "--policy", "defaults", "--rootfs", os.Getenv("PSI_ROOTFS"), "--entry", entry, "-o", bundle)
	olderVersion(t, filepath.Join(bundle, "config.json"))
	times := map[string][]float64{}
	for n := range runs + 1 {
		for name, program := range map[string]string{"psi-runtime": runtime, "crun": "/usr/bin/crun", "runc": "/usr/sbin/runc"} {
			start := time.Now()
			run(t, program, "run", "--bundle", bundle, fmt.Sprint("peers-", name, "-", n))
			if n > 0 { // the first one warms up
				times[name] = append(times[name], float64(time.Since(start).Microseconds())/1000)
			}
		}
	}
	line, err := json.Marshal(times)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("PEERS %s\n", line)
	for name, found := range times {
		slices.Sort(found)
		t.Logf("%s: median %.0f ms of %d", name, found[len(found)/2], len(found))
	}
}

// open lets runc and crun, which read the root as the guest's own user, into the test's directory.
func open(t *testing.T, path string) {
	t.Helper()
	for ; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// olderVersion makes a configuration one that Debian's crun reads: it knows the specification up to 1.0.
func olderVersion(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data = regexp.MustCompile(`"ociVersion": *"[^"]*"`).ReplaceAll(data, []byte(`"ociVersion": "1.0.2"`))
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
