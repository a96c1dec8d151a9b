package escape

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Between the moment a bundle is compiled and the moment it runs, whoever may write to a directory that it shows
// (another guest, say) can put a link there. What the policy named must be shown, or nothing.
func TestViewSourceSwapped(t *testing.T) {
	for _, test := range []struct{ name, rule, replaced, target string }{
		{"directory", "shown", "shown", "outside"},
		{"directory above", "above/shown", "above", "outside"},
		{"file", "shown/secret", "shown/secret", "outside/secret"},
		{"glob", "shown/*", "shown/secret", "outside/secret"},
		{"writable directory", "shown", "shown", "outside"},
	} {
		t.Run(test.name, func(t *testing.T) {
			watched(t)
			dir := publicDir(t)
			write(t, filepath.Join(dir, "outside/secret"), "the secret of the host", 0o644)
			write(t, filepath.Join(dir, "outside/shown/secret"), "the secret of the host", 0o644)
			write(t, filepath.Join(dir, "shown/secret"), "harmless", 0o644)
			write(t, filepath.Join(dir, "above/shown/secret"), "harmless", 0o644)
			rule, _ := json.Marshal(filepath.Join(dir, test.rule))
			policy := "fs: [" + string(rule) + "]\n"
			if strings.HasPrefix(test.name, "writable") {
				policy = "fs: [{write: " + string(rule) + "}]\n"
			}
			seen := filepath.Join(dir, filepath.Dir(test.rule), "secret")
			if !strings.Contains(test.rule, "secret") && !strings.Contains(test.rule, "*") {
				seen = filepath.Join(dir, test.rule, "secret")
			}
			name, _ := json.Marshal(seen)
			bundle := compile(t, policy, "print(open("+string(name)+").read())\n")
			if r := run(t, bundle); r.stdout != "harmless\n" {
				t.Fatalf("before the exchange: exit %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
			}
			place := filepath.Join(dir, test.replaced)
			if err := os.RemoveAll(place); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(dir, test.target), place); err != nil {
				t.Fatal(err)
			}
			if r := run(t, bundle); strings.Contains(r.stdout, "secret") {
				t.Errorf("ESCAPED: the guest sees what a link leads to that was made after its policy was read: %q", r.stdout)
			} else if r.code == 0 {
				t.Errorf("exit 0, stdout %q: want an error", r.stdout)
			} else {
				t.Logf("refused: %s", strings.TrimSpace(r.stderr))
			}
		})
	}
}

// A bundle that names the cgroup of somebody else must not get into it, and deleting it must not end what is there.
func TestCgroupOfOthers(t *testing.T) {
	watched(t)
	victim := exec.Command("sleep", "3600")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		victim.Process.Kill()
		victim.Wait()
	}()
	name := newID()
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		group := filepath.Join(hierarchy, name)
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			victim.Process.Kill()
			victim.Wait()
			unix.Rmdir(group)
		})
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(itoa(victim.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/" + name, "/../../" + name} {
		bundle := compile(t, "{}\n", "print('ran')\n")
		edit(t, bundle, func(c config) { c.at("linux")["cgroupsPath"] = path })
		r := run(t, bundle)
		t.Logf("cgroupsPath %s: exit %d, stdout %q, stderr %s", path, r.code, r.stdout, strings.TrimSpace(r.stderr))
		if err := victim.Process.Signal(unix.Signal(0)); err != nil || zombie(victim.Process.Pid) {
			t.Fatalf("ESCAPED: cgroupsPath %s: a process of the host was killed", path)
		}
		if r.code == 0 {
			t.Errorf("cgroupsPath %s: the bundle ran in a cgroup that is not its own", path)
		}
	}
}

func zombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(data), ") Z ")
}
