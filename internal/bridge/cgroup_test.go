package bridge

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// The figures of a process in a cgroup of its own, on whatever layout the machine has.
func TestFiguresOfACgroup(t *testing.T) {
	leakcheck.Check(t)
	own, err := groupsOf(os.Getpid(), "")
	if err != nil {
		t.Fatal(err)
	}
	const name = "psi-bridge-figures"
	at := map[string]string{}
	for _, controller := range []string{"memory", "cpuacct", "pids", ""} {
		if parent, here := own[controller]; here {
			if err := os.Mkdir(filepath.Join(parent, name), 0o755); err != nil {
				t.Fatal(err)
			}
			at[controller] = filepath.Join(parent, name)
			t.Cleanup(func() {
				for range 100 {
					if os.Remove(at[controller]) == nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
	}
	cmd := exec.Command("sh", "-c", "read go; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; read go")
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	for _, dir := range at {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	stdin.Write([]byte("go\n"))
	stdout.Read(make([]byte, 5))
	if _, err := groupsOf(cmd.Process.Pid, "another-container"); err == nil || !strings.Contains(err.Error(), "another machine") {
		t.Errorf("a process of another container: %v", err)
	}
	p, err := openProcess(cmd.Process.Pid, name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.groups.read()
	_, v1 := own["memory"]
	// On v2 the controllers may not be given to this level: then only the cpu time is there. Pages stay
	// with the group that they were taken in: the memory of a guest is looked at in python/tests.
	if f.cpu < time.Millisecond || v1 && (err != nil || f.pids != 1) || f.oomKills != 0 {
		t.Errorf("figures %+v, %v", f, err)
	}
	if p.dead() {
		t.Error("a living process is called dead")
	}
	stdin.Close()
	select {
	case <-p.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the process was not seen")
	}
	if err := p.signal(9); err != nil || p.final.cpu < f.cpu {
		t.Errorf("after the end: %v, last figures %+v", err, p.final)
	}
}
