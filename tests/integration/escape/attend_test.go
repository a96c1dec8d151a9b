package escape

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/testroot"
)

// attendants are the two processes that attend a container.
func attendants(t *testing.T, id string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), "\x00attend\x00") || !strings.HasSuffix(string(data), "\x00"+id+"\x00") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	if len(pids) != 2 {
		t.Fatalf("attendants: %v", pids)
	}
	return pids
}

// Who kills a process that attends a container kills the container.
func TestEngineContainerDiesWithItsAttendant(t *testing.T) {
	watched(t)
	bundle := engineBundle(t, `{wall_ms: 600000, fs: [{read: /srv/volume}, {read: VOLUME}]}`, func(c config) {
		c["process"].(config)["args"] = []string{"/usr/bin/python3.11", "-I", "-c", "import time; time.sleep(600)"}
	})
	for which := range 2 {
		id := detach(t, bundle)
		pids := attendants(t, id)
		if err := syscall.Kill(pids[which], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); !strings.Contains(invoke(t, program(t), "state", id).stdout, `"stopped"`); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the container lives on")
			}
		}
		invoke(t, program(t), "delete", "--force", id)
	}
	if got := invoke(t, program(t), "gc"); got.code != 0 {
		t.Errorf("gc: %+v", got)
	}
}

// When both are killed at once nobody is left to kill the container: it lives on, held as it
// was, and so is who joins it. Nothing of it is left once it has been deleted.
func TestEngineContainerWithoutAttendants(t *testing.T) {
	watched(t)
	id := detach(t, engineBundle(t, fmt.Sprintf(enginePolicy, ""), func(c config) {
		c["process"].(config)["args"] = []string{"/usr/bin/python3.11", "-I", "-c", "import time; time.sleep(600)"}
	}))
	pids := attendants(t, id)
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} { // neither sees the other die
		for _, pid := range pids {
			if err := syscall.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, pid := range pids { // one that is dead has no command line, whoever has yet to reap it
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || len(line) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("attendant %d is still there", pid)
			}
		}
	}
	source, err := os.ReadFile("testdata/engine.py")
	if err != nil {
		t.Fatal(err)
	}
	checkStopped(t, invoke(t, program(t), "exec", id, "/usr/bin/python3.11", "-I", "-c", string(source)), nil)
	if state := invoke(t, program(t), "state", id).stdout; !strings.Contains(state, `"running"`) {
		t.Errorf("it does not live: %s", state)
	}
	if got := invoke(t, program(t), "delete", "--force", id); got.code != 0 {
		t.Errorf("delete: %+v", got)
	}
	if got := invoke(t, program(t), "gc"); got.code != 0 || strings.Contains(got.stdout, id) {
		t.Errorf("gc: %+v", got)
	}
	if left, err := filepath.Glob("/sys/fs/bpf/psi/*"); err != nil || os.Getenv("PSI_TEST_VM") != "" && len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}
	if got := invoke(t, program(t), "gc"); got.code != 0 || got.stdout != "" {
		t.Errorf("gc, again: %+v", got)
	}
}

// A policy is in force before the first instruction: a program that does nothing but open a
// denied file never reads it, however often it tries.
func TestEngineFirstInstruction(t *testing.T) {
	watched(t)
	root := publicDir(t)
	if err := testroot.Make(root); err != nil {
		t.Fatal(err)
	}
	// By Landlock where there are no LSM programs, and by these for a part and for a pattern.
	policies, times := map[string]string{"a part": "{read: VOLUME/public}"}, 20
	if os.Getenv("PSI_TEST_VM") != "" { // where a start takes seconds
		policies["a pattern"], times = `{read: "VOLUME/publi?/f"}`, 5
	}
	for name, rule := range policies {
		var volume string
		bundle := engineBundle(t, "{fs: ["+rule+"]}", func(c config) {
			c["root"] = config{"path": root}
			for _, m := range c["mounts"].([]config) {
				if m["destination"] == "/srv/volume" {
					volume = m["source"].(string)
					m["destination"] = volume
				}
			}
		})
		cat := func(file string) result {
			edit(t, bundle, func(c config) { c.at("process")["args"] = []string{"/bin/cat", filepath.Join(volume, file)} })
			return run(t, bundle)
		}
		if got := cat("public/f"); got.code != 0 || got.stdout != "public" {
			t.Fatalf("%s: what is open cannot be read: %+v", name, got)
		}
		for range times {
			if got := cat("secret"); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "Permission denied") {
				t.Fatalf("%s: %+v", name, got)
			}
		}
	}
}
