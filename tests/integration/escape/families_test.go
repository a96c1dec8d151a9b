package escape

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// family is a script of attempts and what it needs.
type family struct {
	script, policy string
	args           []string
	loosen         func(config)    // takes the confinement out of config.json
	command        func(*exec.Cmd) // changes the control's command; may be nil
	flags          []string        // of the control's `psi-runtime run`
	after          func(t *testing.T, confined bool)
}

// bothWays runs a family of attempts confined, and once more without confinement.
func (f family) bothWays(t *testing.T) {
	t.Helper()
	t.Run("confined", func(t *testing.T) {
		watched(t)
		mustHold(t, run(t, compile(t, f.policy, script(t, f.script), f.args...)))
		if f.after != nil {
			f.after(t, true)
		}
	})
	t.Run("control", func(t *testing.T) {
		watched(t)
		bundle := compile(t, f.policy, script(t, f.script), f.args...)
		edit(t, bundle, f.loosen)
		command := f.command
		if command == nil {
			command = func(*exec.Cmd) {}
		}
		mustEscape(t, runWith(t, bundle, command, f.flags...))
		if f.after != nil {
			f.after(t, false)
		}
	})
}

func TestMountsAndNamespaces(t *testing.T) {
	family{script: "mounts", policy: "{}\n", loosen: loosen("pid", "mount", "network", "ipc", "uts", "cgroup")}.bothWays(t)
}

func TestKernelInterfaces(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	family{script: "kernel", policy: "{}\n", loosen: loosen("pid", "mount", "network", "ipc", "uts", "cgroup")}.bothWays(t)
	if now, _ := os.Hostname(); now != name {
		t.Errorf("the host's name was %q and is %q", name, now)
	}
}

func TestProcessesOfTheHost(t *testing.T) {
	victim := exec.Command("sleep", "3600")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		victim.Process.Kill()
		victim.Wait()
	}()
	family{
		script: "processes", policy: "{}\n", loosen: loosen("mount", "network", "ipc", "uts"),
		args: []string{"victim=" + strconv.Itoa(victim.Process.Pid)},
	}.bothWays(t)
	if err := victim.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the process of the host has ended: %v", err)
	}
}

func TestFilesOfTheHost(t *testing.T) {
	outside := publicDir(t)
	write(t, filepath.Join(outside, "secret"), "the secret of the host", 0o644)
	family{
		script: "files", policy: "{}\n", args: []string{"outside=" + outside},
		loosen: func(c config) {
			loosen("pid", "mount", "ipc", "uts")(c)
			addMount(c, outside, outside, "bind", "bind", "ro")
			addMount(c, "sysfs", "/sys", "sysfs", "ro")
			addMount(c, "/dev", "/dev", "bind", "bind", "rw")
		},
		// A directory that the runtime leaves open, as CVE-2024-21626 did.
		command: func(cmd *exec.Cmd) {
			root, err := os.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { root.Close() })
			cmd.ExtraFiles = []*os.File{root}
		},
		flags: []string{"--preserve-fds=1"},
	}.bothWays(t)
}
