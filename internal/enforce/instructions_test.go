package enforce

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/bpf"
)

const instructionTable = "testdata/instructions.txt"

// object is what is loaded together.
type object struct {
	name string
	load func() (*ebpf.CollectionSpec, error)
}

func objects() []object {
	return []object{{"net", bpf.LoadNet}, {"lookup", bpf.LoadLookup}, {"match", bpf.LoadMatch}, {"sched", bpf.LoadSched}, {"lsm", bpf.LoadLSM}, {"pairs", bpf.LoadPairs}}
}

// TestVerifiedInstructions loads every program through the verifier of the running
// kernel, and compares the instructions that it looked at with the committed table: a
// program does not become more expensive to load unseen. With PSI_UPDATE=1 it prints
// the lines of this kernel instead. A kernel without lines fails it in CI, and is told
// of elsewhere.
func TestVerifiedInstructions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	kernel, counted := kernelVersion(t), verifiedHere(t)
	wrong, known := faults(readInstructions(t), kernel, counted)
	update := os.Getenv("PSI_UPDATE") != ""
	if !known || update {
		var lines []string
		for program, count := range counted {
			lines = append(lines, fmt.Sprintf("%s %s %d", kernel, program, count))
		}
		slices.Sort(lines)
		t.Logf("lines for %s:\n%s", instructionTable, strings.Join(lines, "\n"))
	}
	switch {
	case update:
	case !known && (os.Getenv("CI") != "" || os.Getenv("PSI_TEST_VM") != ""):
		t.Errorf("%s has no lines of Linux %s, so nobody sees what a change costs there: add those above", instructionTable, kernel)
	default:
		for _, fault := range wrong {
			t.Error(fault)
		}
	}
}

// faults compares what the verifier of a kernel counted, by object and program, with the
// table; known says whether the table has the kernel at all.
func faults(table map[string]uint32, kernel string, counted map[string]uint32) (wrong []string, known bool) {
	for key := range table {
		program, here := strings.CutPrefix(key, kernel+" ")
		known = known || here
		if _, loaded := counted[program]; here && !loaded {
			wrong = append(wrong, fmt.Sprintf("%s is in %s, and this kernel has not loaded it: remove the line, or find out why", key, instructionTable))
		}
	}
	if !known {
		return nil, false
	}
	for program, count := range counted {
		switch want, there := table[kernel+" "+program]; {
		case !there:
			wrong = append(wrong, fmt.Sprintf("%s %s %d is not in %s: add the line", kernel, program, count, instructionTable))
		case count > want:
			wrong = append(wrong, fmt.Sprintf("%s %s: %d instructions were verified, %d are in %s: find out why, or write the new number there", kernel, program, count, want, instructionTable))
		}
	}
	return wrong, true
}

func TestInstructionFaults(t *testing.T) {
	table := map[string]uint32{"6.1 net a": 10, "6.1 net b": 20, "6.9 net a": 30}
	for _, tc := range []struct {
		kernel  string
		counted map[string]uint32
		known   bool
		wrong   string // in the only fault; "" is none
	}{
		{"6.1", map[string]uint32{"net a": 10, "net b": 19}, true, ""},
		{"6.1", map[string]uint32{"net a": 11, "net b": 20}, true, "net a: 11 instructions"},
		{"6.1", map[string]uint32{"net a": 10}, true, "net b is in"},
		{"6.9", map[string]uint32{"net a": 30, "net b": 1}, true, "net b 1 is not in"},
		{"6", map[string]uint32{"net a": 10}, false, ""},
	} {
		wrong, known := faults(table, tc.kernel, tc.counted)
		if all := strings.Join(wrong, "\n"); known != tc.known || len(wrong) > 1 || (tc.wrong == "") != (all == "") || !strings.Contains(all, tc.wrong) {
			t.Errorf("%s %v: %q, %v", tc.kernel, tc.counted, wrong, known)
		}
	}
}

// TestInstructionTable compares the table with what is in the objects: each program has
// a line of some kernel, or one that says that no kernel of CI takes it; and no line is
// about a program that has gone.
func TestInstructionTable(t *testing.T) {
	programs := make(map[string]bool)
	for _, o := range objects() {
		spec, err := o.load()
		if err != nil {
			t.Fatal(err)
		}
		for name := range spec.Programs {
			programs[o.name+" "+name] = true
		}
	}
	taken, never := make(map[string]bool), make(map[string]bool)
	for key := range readInstructions(t) {
		kernel, program, _ := strings.Cut(key, " ")
		if !programs[program] {
			t.Errorf("%s: %q: there is no such program: remove the line", instructionTable, key)
		}
		if kernel == noKernel {
			never[program] = true
		} else {
			taken[program] = true
		}
	}
	for program := range programs {
		switch {
		case taken[program] && never[program]:
			t.Errorf("%s: %s is said to be taken by no kernel of CI, and has lines of one", instructionTable, program)
		case !taken[program] && !never[program]:
			t.Errorf("%s: %s has no line: if no kernel of CI takes it, write %q and the first release that does", instructionTable, program, noKernel+" "+program)
		}
	}
	for program := range never {
		if hook, ok := strings.CutPrefix(program, "lsm psi_"); !ok || !slices.Contains(newHooks(), hook) {
			t.Errorf("%s: %s is not among the hooks that a kernel may lack: nothing would load without it", instructionTable, program)
		}
	}
}

// noKernel stands in the table for the kernels of CI, of which none takes a program: the
// number is the release that brought its hook.
const noKernel = "none"

// verifiedHere is what the verifier counted, by object and program. What this kernel
// does not take is not there.
func verifiedHere(t *testing.T) map[string]uint32 {
	t.Helper()
	all := make(map[string]uint32)
	for _, o := range objects() {
		if err := probeLSM(); o.name == "lsm" && err != nil {
			if os.Getenv("PSI_TEST_VM") != "" {
				t.Fatal(err)
			}
			t.Logf("%s: not on this kernel: %v", o.name, err)
			continue
		}
		if err := ProbePairs(); o.name == "pairs" && err != nil {
			t.Logf("%s: not on this kernel: %v", o.name, err) // that it is for the age of the kernel, TestHoldPairs tells
			continue
		}
		for program, count := range verified(t, o.load) {
			all[o.name+" "+program] = count
		}
	}
	return all
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
		counts[name] = countOf(t, name, program)
	}
	return counts
}

func countOf(t *testing.T, name string, program *ebpf.Program) uint32 {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	if !ok {
		t.Fatalf("the kernel does not say how many instructions of %s it verified", name)
	}
	return n
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
		var kernel, object, program, number string
		if _, err := fmt.Sscan(line, &kernel, &object, &program, &number); err != nil {
			t.Fatalf("%s: %q: %v", instructionTable, line, err)
		}
		var count uint32
		if _, err := fmt.Sscan(number, &count); err != nil && kernel != noKernel {
			t.Fatalf("%s: %q: %v", instructionTable, line, err)
		}
		key := kernel + " " + object + " " + program
		if _, twice := table[key]; twice {
			t.Fatalf("%s: %q is there twice", instructionTable, key)
		}
		table[key] = count
	}
	return table
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
