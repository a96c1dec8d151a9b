// Command guest is pid 1 of the test machine that tests/vm boots.
//
// It runs twice: first from the initramfs, where it loads the modules and moves to the disk, then
// from the disk, where it mounts what a Linux system has, runs the steps in /psi/steps.json and
// powers the machine off. See tests/vm for the picture.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "steps":
		os.Exit(runSteps())
	case isFile("/psi/steps.json"):
		err = system()
	default:
		err = initramfs()
	}
	fmt.Println("guest:", err)
	powerOff()
}

// initramfs loads the modules, mounts the disk, makes it the root and runs this program from there.
func initramfs() error {
	if err := mount("devtmpfs", "/dev", "devtmpfs", ""); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := waitFor("/dev/vda", 10*time.Second); err != nil {
		return err
	}
	if err := mount("/dev/vda", "/new", "ext4", ""); err != nil {
		return err
	}
	if err := unix.Mount("/dev", "/new/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving /dev: %w", err)
	}
	if err := os.Chdir("/new"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the disk to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing root: %w", err)
	}
	return unix.Exec("/psi/guest", []string{"guest"}, os.Environ())
}

// system mounts the file systems, runs the steps in a child so that this process only reaps, and
// reports the child's exit code on the second serial port.
func system() error {
	for _, m := range []struct{ source, target, kind, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "nsdelegate"},
		{"bpf", "/sys/fs/bpf", "bpf", ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""},
		{"securityfs", "/sys/kernel/security", "securityfs", ""},
		{"tmpfs", "/run", "tmpfs", "mode=755"},
		{"devpts", "/dev/pts", "devpts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
	} {
		if err := mount(m.source, m.target, m.kind, m.data); err != nil {
			return err
		}
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := holdSwitch(); err != nil {
		return err
	}
	if err := startProcessors(); err != nil {
		return err
	}
	code, err := runChild("/psi/guest", "steps")
	if err != nil {
		return err
	}
	serial, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fmt.Fprintf(serial, "\nPSI-VM-EXIT %d\n", code)
	serial.Close()
	time.Sleep(100 * time.Millisecond) // the port empties before the power goes
	powerOff()
	return nil
}
