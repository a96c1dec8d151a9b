// Command vm runs the project's tests on a second kernel: Debian's cloud kernel under qemu's
// software emulation, with pure cgroup v2, BPF-LSM, Landlock and BTF. It is for correctness, not
// for timing: a container start is some fifty times slower there than on the host.
//
// One boot runs many test binaries one after another:
//
//	host                                   guest
//	kernel package → vmlinuz, modules
//	test binaries, python, bin/ → ext4  →  /dev/vda, mounted as the root
//	steps → /psi/steps.json             →  tests/vm/guest runs each, under its own time limit
//	results file                        ←  ttyS1: output, then one line "PSI-VM-EXIT <code>"
//
// A run without that last line (a panic, a hang, a kernel that does not boot) has failed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

// options are the parsed flags.
type options struct {
	Run     string        // -run: only tests whose name matches
	Suites  []string      // packages or "python", in order; none = all suites that list the VM
	Work    string        // -work: directory for kernel, image and logs
	Timeout time.Duration // -timeout: for the whole boot
	Memory  int           // -memory: MiB
	Count   bool          // -count: measure in instructions
}

func main() {
	var o options
	flag.StringVar(&o.Run, "run", "", "run only the tests that match `REGEXP`")
	flag.StringVar(&o.Work, "work", "build/vm", "`DIR` for the kernel, the image and the logs")
	flag.DurationVar(&o.Timeout, "timeout", 30*time.Minute, "time limit of the whole boot")
	flag.IntVar(&o.Memory, "memory", 2560, "memory of the machine in MiB")
	flag.BoolVar(&o.Count, "count", false, "one processor, whose clock counts its instructions; sets PSI_TEST_COUNT")
	flag.Parse()
	o.Suites = flag.Args()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	code, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

// run builds what the machine needs, boots it, and returns the exit code that the guest reported.
func run(ctx context.Context, o options) (int, error) {
	work, err := filepath.Abs(o.Work)
	if err != nil {
		return 1, err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return 1, err
	}
	steps, err := planSteps(o.Suites, o.Run)
	if err != nil {
		return 1, err
	}
	for i := range steps {
		if o.Count {
			steps[i].Env = append(steps[i].Env, "PSI_TEST_COUNT=1")
		}
		if os.Getenv("PSI_UPDATE") != "" { // print what a table should say
			steps[i].Env = append(steps[i].Env, "PSI_UPDATE=1")
		}
	}
	kernel, err := fetchKernel(ctx, filepath.Join(work, "kernel"))
	if err != nil {
		return 1, fmt.Errorf("fetching the kernel: %w", err)
	}
	initrd, err := buildInitramfs(ctx, work, kernel)
	if err != nil {
		return 1, fmt.Errorf("building the initramfs: %w", err)
	}
	image, err := buildImage(ctx, work, steps)
	if err != nil {
		return 1, fmt.Errorf("building the disk image: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	return boot(ctx, machine{
		Kernel: kernel.Image, Initrd: initrd, Disk: image, MemoryMiB: o.Memory, Count: o.Count,
		Console: filepath.Join(work, "console.log"), Results: filepath.Join(work, "results.log"),
		Reports: "build/reports",
	})
}

// writeJSON writes v, indented, to path.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
