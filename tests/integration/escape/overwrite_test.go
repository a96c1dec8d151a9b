package escape

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A guest that holds on to the runtime's executable cannot change it (CVE-2019-5736). The runtime here is a copy:
// a test that fails must not break the others.
func TestRuntimeIsNotOverwritten(t *testing.T) {
	for _, way := range []string{"confined", "control"} {
		t.Run(way, func(t *testing.T) {
			watched(t)
			runtime := copyOf(t, program(t))
			before := digest(t, runtime)
			seen := attack(t, runtime, way == "control")
			if !strings.Contains(seen, "seen: [") || strings.Contains(seen, "seen: []") {
				t.Errorf("the guest saw no process that entered, so this shows nothing: %q", seen)
			}
			changed := digest(t, runtime) != before
			if way == "control" && !changed {
				t.Error("the runtime was overwritten on purpose, and that is not seen")
			}
			if way == "confined" && changed {
				t.Error("ESCAPED: the runtime's binary was changed by a guest")
			}
		})
	}
}

// attack runs the attempt while the host enters the container again and again, and returns what it says.
func attack(t *testing.T, runtime string, control bool) string {
	t.Helper()
	args := []string{"seconds=120"}
	if control {
		args = append(args, "also=/mnt/runtime")
	}
	bundle := compile(t, "{}\n", script(t, "../overwrite"), args...)
	edit(t, bundle, func(c config) {
		loosen("pid", "mount", "network", "ipc", "uts")(c)
		if control {
			write(t, filepath.Join(bundle, "rootfs/mnt/runtime"), "", 0o644)
			addMount(c, runtime, "/mnt/runtime", "bind", "bind", "rw")
		}
	})
	id := newID()
	cmd := exec.Command(runtime, "run", "--bundle", bundle, id)
	if control {
		cmd.Path = program(t) // the copy will be spoiled
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command(program(t), "delete", "--force", id).Run()
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the attempt did not start: %q", lines.Text())
	}
	entering := runtime
	if control {
		entering = program(t)
	}
	for range 5 {
		exec.Command(entering, "exec", id, "/proc/self/exe", "-c", "pass").Run() // of CVE-2019-5736
		exec.Command(entering, "exec", id, "/usr/bin/python3", "-I", "-S", "-c", "import time; time.sleep(0.05)").Run()
	}
	if out, err := exec.Command(entering, "exec", id, "/usr/bin/python3", "-I", "-S", "-c", "open('/tmp/stop', 'w')").CombinedOutput(); err != nil && !strings.Contains(err.Error(), "137") { // the guest may end before this process in it does, which is then killed
		t.Fatalf("telling the attempt to stop: %v: %s", err, out)
	}
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the attempt ended: %v", err)
	}
	t.Log(strings.Join(said, "\n"))
	return strings.Join(said, "\n")
}

func copyOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(publicDir(t), "psi-runtime")
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // nobody has it open for writing any more
	return to
}

func digest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}
