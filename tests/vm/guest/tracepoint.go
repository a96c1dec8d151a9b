package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// held is what holdSwitch leaves in place until the power goes.
var held []link.Link

// holdSwitch attaches two programs that do nothing to sched_switch, so that the kernel never again
// rewrites the scheduler's code for it: with the first and the last program, and between one and
// two, it does. Before version 8.1, qemu's emulation can miss that a processor's code was
// rewritten while it translated it, and then runs the breakpoint that the rewriting put there
// for ever, with interrupts off: the machine stands still, in one of some ten attachments. So it
// happens while there is one processor (maxcpus=1), and startProcessors brings the others.
func holdSwitch() error {
	for range 2 {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.RawTracepoint, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if err != nil {
			return fmt.Errorf("loading the program that holds sched_switch: %w", err)
		}
		one, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: program})
		if err != nil {
			return fmt.Errorf("holding sched_switch: %w", err)
		}
		held = append(held, one)
	}
	return nil
}

// startProcessors starts those that the machine was booted without.
func startProcessors() error {
	const all = "/sys/devices/system/cpu"
	files, err := filepath.Glob(all + "/cpu[0-9]*/online")
	if err != nil {
		return err
	}
	for _, path := range files { // the first has no such file
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			return fmt.Errorf("starting a processor: %w", err)
		}
	}
	online, err := os.ReadFile(all + "/online")
	present, err2 := os.ReadFile(all + "/present")
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if string(online) != string(present) {
		return fmt.Errorf("processors %s are present and %s run", bytes.TrimSpace(present), bytes.TrimSpace(online))
	}
	return nil
}
