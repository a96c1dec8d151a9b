package enforce

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

const instructionTable = "testdata/instructions.txt"

// TestVerifiedInstructions loads every program of every object through the verifier
// of the running kernel, and compares the instructions that it looked at with the
// committed table: a program does not become more expensive to load unseen. With
// PSI_UPDATE=1 it prints the lines of this kernel instead.
func TestVerifiedInstructions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	table := readInstructions(t)
	kernel := kernelVersion(t)
	var printed []string
	for _, object := range []struct {
		name string
		load func() (*ebpf.CollectionSpec, error)
		lsm  bool
	}{{"net", bpf.LoadNet, false}, {"lookup", bpf.LoadLookup, false}, {"match", bpf.LoadMatch, false}, {"sched", bpf.LoadSched, false}, {"lsm", bpf.LoadLSM, true}} {
		if err := probeLSM(); object.lsm && err != nil {
			if os.Getenv("PSI_TEST_VM") != "" {
				t.Fatal(err)
			}
			t.Logf("%s: not on this kernel: %v", object.name, err)
			continue
		}
		for program, count := range verified(t, object.load) {
			key := kernel + " " + object.name + " " + program
			printed = append(printed, fmt.Sprintf("%s %d", key, count))
			want, known := table[key]
			switch {
			case os.Getenv("PSI_UPDATE") != "":
			case !known && hasKernel(table, kernel+" "+object.name):
				t.Errorf("%s is not in %s: add the line with PSI_UPDATE=1", key, instructionTable)
			case known && count > want:
				t.Errorf("%s: %d instructions were verified, %d are in the table: find out why, or write the new number there", key, count, want)
			case known && count < want:
				t.Logf("%s: %d instructions, fewer than the %d in the table", key, count, want)
			}
		}
	}
	if os.Getenv("PSI_UPDATE") != "" || !hasKernel(table, kernel+" net") {
		sort.Strings(printed)
		t.Logf("lines for %s:\n%s", instructionTable, strings.Join(printed, "\n"))
	}
}

// verified loads an object and returns what the verifier counted.
func verified(t *testing.T, load func() (*ebpf.CollectionSpec, error)) map[string]uint32 {
	t.Helper()
	spec, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if err := dropNewHooks(spec); err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer collection.Close()
	counts := make(map[string]uint32)
	for name, program := range collection.Programs {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok {
			t.Fatalf("the kernel does not say how many instructions of %s it verified", name)
		}
		counts[name] = n
	}
	return counts
}

// readInstructions reads lines of "KERNEL OBJECT PROGRAM COUNT".
func readInstructions(t *testing.T) map[string]uint32 {
	t.Helper()
	data, err := os.ReadFile(instructionTable)
	if err != nil {
		t.Fatal(err)
	}
	table := make(map[string]uint32)
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		var kernel, object, program string
		var count uint32
		if _, err := fmt.Sscan(line, &kernel, &object, &program, &count); err != nil {
			t.Fatalf("%s: %q: %v", instructionTable, line, err)
		}
		table[kernel+" "+object+" "+program] = count
	}
	return table
}

func hasKernel(table map[string]uint32, kernel string) bool {
	for key := range table {
		if strings.HasPrefix(key, kernel+" ") {
			return true
		}
	}
	return false
}

// kernelVersion is the running kernel's, "6.1".
func kernelVersion(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)
	if len(parts) < 2 {
		t.Fatalf("kernel release %q", parts)
	}
	return parts[0] + "." + parts[1]
}
