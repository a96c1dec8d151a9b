package container

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	for name, spec := range map[string]func(string) *specs.Spec{"own ids": autoSpec, "plain": plainSpec} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			c, r := f.start(spec("echo up; sleep 1000"))
			line(t, r)
			out, status := execOutput(t, c, ProcessOptions{Process: process("echo $$; cat /proc/1/cmdline; exit 7")})
			if status.Code != 7 || !strings.Contains(out, "sleep 1000") {
				t.Errorf("status %+v, output %q", status, out)
			}
			if out, status := execOutput(t, c, ProcessOptions{Process: process("kill -9 $$")}); status.Signal != unix.SIGKILL {
				t.Errorf("status %+v, output %q", status, out)
			}
			_, err := c.Exec(ProcessOptions{Process: &specs.Process{Args: []string{"/no/such"}, Cwd: "/"}})
			if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
				t.Errorf("a missing program: %v", err)
			}
		})
	}
}

func process(script string) *specs.Process {
	return &specs.Process{
		Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
	}
}

// execOutput runs one more process to its end.
func execOutput(t *testing.T, c *Container, o ProcessOptions) (string, ExitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	p, err := c.Exec(o)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return string(out), status
}

func TestExecPIDFileAndSignal(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(autoSpec("echo up; sleep 1000"))
	line(t, r)
	file := filepath.Join(t.TempDir(), "pid")
	p, err := c.Exec(ProcessOptions{Process: process("sleep 1000"), PIDFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != strconv.Itoa(p.PID()) {
		t.Errorf("pid file %q, %v; pid %d", data, err, p.PID())
	}
	pids, err := c.PIDs()
	if err != nil || len(pids) < 2 {
		t.Errorf("processes %v, %v", pids, err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(); err != nil || status.Signal != unix.SIGTERM {
		t.Errorf("status %+v, %v", status, err)
	}
}

func TestExecIntoStopped(t *testing.T) {
	f := newFixture(t)
	c, _ := f.start(autoSpec("exit 0"))
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ProcessOptions{Process: process("true")}); err == nil || err.Error() != "cannot exec in a stopped container" {
		t.Errorf("got %v", err)
	}
}
