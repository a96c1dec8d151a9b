package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// machine is what qemu is started with.
type machine struct {
	Kernel, Initrd, Disk string
	Console, Results     string // files that the two serial ports are written to
	Reports              string // directory for the files that tests wrote for people
	MemoryMiB            int
	// Count: one processor whose clock is the number of instructions that it has executed, a
	// nanosecond each, so that time in the machine is a measure that other work does not touch.
	Count bool
}

// exitLine is the guest's last word; without it the run has failed.
const exitLine = "PSI-VM-EXIT "

// reportLine begins a line with a file for people, which a test wrote to build/reports in the
// guest: its name and, in base64, what is in it.
const reportLine = "PSI-VM-REPORT "

// boot runs the machine, shows what the guest writes to its second serial port as it comes, and
// returns the exit code in its last line.
func boot(ctx context.Context, m machine) (int, error) {
	results, err := os.Create(m.Results)
	if err != nil {
		return 1, err
	}
	defer results.Close()
	reader, writer := io.Pipe()
	processors := []string{"-accel", "tcg,thread=multi", "-smp", "2"}
	if m.Count {
		processors = []string{"-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"}
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(processors,
		"-cpu", "max", "-m", strconv.Itoa(m.MemoryMiB),
		"-kernel", m.Kernel, "-initrd", m.Initrd,
		"-append", "console=ttyS0 quiet panic=-1 lsm=landlock,lockdown,yama,bpf systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all maxcpus=1",
		"-drive", "file="+m.Disk+",format=raw,if=virtio,cache=unsafe",
		"-display", "none", "-no-reboot", "-nic", "none", "-monitor", "none",
		"-serial", "file:"+m.Console, "-serial", "stdio")...)
	cmd.Stdout = writer
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("starting qemu-system-x86_64 (package qemu-system-x86): %w", err)
	}
	code := make(chan int, 1)
	go func() { code <- follow(io.TeeReader(reader, results), os.Stdout, m.Reports) }()
	waitErr := cmd.Wait()
	writer.Close()
	got := <-code
	if ctx.Err() != nil {
		return 1, fmt.Errorf("the machine did not finish in time (%w); its console is in %s", ctx.Err(), m.Console)
	}
	if got < 0 {
		return 1, fmt.Errorf("the machine stopped without a result (%w); its console is in %s",
			errors.Join(waitErr, errors.New("no "+strings.TrimSpace(exitLine)+" line")), m.Console)
	}
	return got, nil
}

// follow copies lines to out until the exit line, whose code it returns; -1 without one. Files that
// are sent go to reports; one that cannot be written makes it 1.
func follow(in io.Reader, out io.Writer, reports string) int {
	code := -1
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if text := strings.TrimRight(line, "\r\n"); strings.HasPrefix(text, exitLine) {
			if n, convErr := strconv.Atoi(strings.TrimPrefix(text, exitLine)); convErr == nil {
				code = max(code, n)
			}
		} else if strings.HasPrefix(text, reportLine) {
			if err := writeReport(reports, strings.TrimPrefix(text, reportLine)); err != nil {
				fmt.Fprintln(out, "vm:", err)
				code = 1
			}
		} else if line != "" {
			fmt.Fprintln(out, text)
		}
		if err != nil {
			return code
		}
	}
}

// writeReport makes the file of a line "NAME BASE64".
func writeReport(dir, line string) error {
	name, encoded, _ := strings.Cut(line, " ")
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return fmt.Errorf("receiving report %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, filepath.Base(name)), data, 0o644)
}
