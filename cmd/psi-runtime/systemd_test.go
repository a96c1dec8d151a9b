package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// systemdEnv makes the test binary become systemd, as the first process of namespaces
// that [TestUnderSystemd] made. Its value is the directory of the unit to start.
const systemdEnv = "PSI_TEST_SYSTEMD"

// systemdUnit runs this test's binary again, under systemd, and ends systemd with it.
const systemdUnit = `[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=PATH=%s PSI_TEST_VM=%s
WorkingDirectory=%s
ExecStart=/bin/sh -c 'exec "$0" -test.v -test.run "$1" >"$2" 2>&1' %s %s %s
`

// underSystemd are the scripts that run again where systemd makes the cgroups: those that
// have to do with them.
const underSystemd = "TestScripts/(systemd|user|exec|pause|update)"

// TestUnderSystemd starts Debian's systemd in namespaces of its own, with a cgroup that is all
// the hierarchy it sees, as a container would have it, and runs scripts in it.
func TestUnderSystemd(t *testing.T) {
	v2, err := scriptCondition("v2")
	if err != nil {
		t.Fatal(err)
	}
	if !v2 {
		t.Skip("systemd is given a part of the cgroup hierarchy, which only pure cgroup v2 can do: the second kernel has it")
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	unit := fmt.Sprintf(systemdUnit, os.Getenv("PATH"), os.Getenv("PSI_TEST_VM"), here, self, underSystemd, log)
	if err := os.WriteFile(filepath.Join(dir, "psi-test.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	group := systemdGroup(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = []string{systemdEnv + "=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	out, err := cmd.CombinedOutput()
	data, _ := os.ReadFile(log)
	// How systemd itself exits depends on a helper that may be missing here.
	text := strings.TrimSpace(string(data))
	if ctx.Err() != nil || !strings.HasSuffix(text, "PASS") || !strings.Contains(text, "--- PASS: TestScripts/systemd/systemd") || !strings.Contains(text, "--- PASS: TestScripts/user/user") || strings.Contains(text, "stop: no systemd runs here") {
		t.Errorf("under systemd: %v\n%s\n%s", err, out, text)
	}
}

// systemdGroup makes the group that systemd gets, with all controllers.
func systemdGroup(t *testing.T) *os.File {
	t.Helper()
	const root = "/sys/fs/cgroup"
	available, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(available)) {
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("psi-test-systemd-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		group.Close()
		eventually(t, "the groups of systemd are gone", func() bool { return removeGroups(dir) == nil })
	})
	return group
}

// removeGroups removes a group and those below it.
func removeGroups(dir string) error {
	below, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range below {
		if entry.IsDir() {
			if err := removeGroups(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// becomeSystemd is what the first process of the namespaces does.
func becomeSystemd(units string) error {
	runtime.LockOSThread() // which gets the namespaces, and becomes systemd
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	for _, m := range [][3]string{{"proc", "/proc", ""}, {"cgroup2", "/sys/fs/cgroup", "nsdelegate"}, {"tmpfs", "/run", "mode=755"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, m[2]); err != nil {
			return fmt.Errorf("mounting %s: %w", m[1], err)
		}
	}
	args := []string{"systemd", "--system", "--unit=psi-test.service", "--log-target=null"}
	return unix.Exec("/lib/systemd/systemd", args, []string{
		"container=psi", "container_uuid=6d2b1f0e4c3a4d5e8f9a0b1c2d3e4f50", "SYSTEMD_UNIT_PATH=" + units + ":", "PATH=" + os.Getenv("PATH"),
	})
}
