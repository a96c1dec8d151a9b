package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

func TestLifecycle(t *testing.T) {
	c := newLine(t)
	bundle := c.bundle("sleep 1000")
	c.detached("create", "--bundle", bundle, "x")
	var s container.State
	state := func() container.State {
		s = container.State{}
		if err := json.Unmarshal([]byte(c.ok("state", "x")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if state(); s.Status != "created" || s.ID != "x" || s.PID <= 0 || s.Bundle != bundle || s.Rootfs != testRoot || s.Version == "" {
		t.Errorf("state %+v", s)
	}
	if r := c.run("create", "-b", bundle, "x"); r.code != 1 || !strings.Contains(r.err, "already exists") {
		t.Errorf("creating it twice: %d, %q", r.code, r.err)
	}
	c.ok("start", "x")
	if state(); s.Status != "running" {
		t.Errorf("state %+v", s)
	}
	var pids []int
	if err := json.Unmarshal([]byte(c.ok("ps", "--format", "json", "x")), &pids); err != nil || !slices.Contains(pids, s.PID) {
		t.Errorf("ps: %v, %v; init is %d", pids, err, s.PID)
	}
	if out := c.ok("ps", "x", "-o", "pid,comm"); !strings.Contains(out, strconv.Itoa(s.PID)) || !strings.Contains(out, "PID") {
		t.Errorf("ps table: %q", out)
	}
	if r := c.run("delete", "x"); r.code != 1 || !strings.Contains(r.err, "not stopped") {
		t.Errorf("deleting a running container: %d, %q", r.code, r.err)
	}
	c.ok("kill", "x", "0")
	c.ok("kill", "--all", "x", "KILL")
	eventually(t, "it has stopped", func() bool { return state().Status == "stopped" })
	if s.PID != 0 {
		t.Errorf("a stopped container has pid %d", s.PID)
	}
	if r := c.run("kill", "x", "TERM"); r.code != 1 || !strings.Contains(r.err, "container not running") {
		t.Errorf("kill: %d, %q", r.code, r.err)
	}
	c.ok("kill", "-a", "x", "9")
	c.ok("delete", "x")
	if r := c.run("state", "x"); r.code != 1 || !strings.Contains(r.err, "does not exist") {
		t.Errorf("state of a deleted container: %d, %q", r.code, r.err)
	}
	if r := c.run("delete", "x"); r.code != 1 {
		t.Errorf("deleting nothing: exit code %d", r.code)
	}
	c.ok("delete", "x", "--force") // also with the flag behind
}

func TestList(t *testing.T) {
	c := newLine(t)
	if r := c.run("list"); r.code != 1 {
		t.Errorf("a root that does not exist: exit code %d", r.code)
	}
	if _, err := os.Stat(c.root); err == nil {
		t.Error("list made the root")
	}
	c.detached("create", "-b", c.bundle("true"), "one")
	c.detached("create", "-b", c.bundle("true"), "two")
	if out := c.ok("list", "-q"); out != "one\ntwo\n" {
		t.Errorf("list -q: %q", out)
	}
	var states []container.State
	if err := json.Unmarshal([]byte(c.ok("list", "--format", "json")), &states); err != nil || len(states) != 2 || states[0].Owner != "root" {
		t.Errorf("list json: %+v, %v", states, err)
	}
	if got := strings.Fields(strings.SplitN(c.ok("list"), "\n", 2)[0]); !slices.Equal(got, []string{"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}) {
		t.Errorf("list table: %v", got)
	}
	if r := c.run("list", "-f", "xml"); r.code != 1 {
		t.Errorf("a bad format: exit code %d", r.code)
	}
}

func TestExec(t *testing.T) {
	c := newLine(t)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "x")
	for script, want := range map[string]int{"exit 0": 0, "exit 9": 9, "kill -15 $$": 143} {
		if r := c.run("exec", "x", "sh", "-c", script); r.code != want {
			t.Errorf("%q: exit code %d, want %d: %s", script, r.code, want, r.err)
		}
	}
	for name, args := range map[string][]string{
		"no container": {"exec", "y", "true"}, "no program": {"exec", "x", "/no/such"},
		"no command": {"exec", "x"}, "no id": {"exec"}, "bad user": {"exec", "-u", "me", "x", "true"},
	} {
		if r := c.run(args...); r.code != 255 {
			t.Errorf("%s: exit code %d: %s", name, r.code, r.err)
		}
	}
	out := c.ok("exec", "--user", "12:34", "-g", "56", "--cwd", "/tmp", "-e", "A=b,c=d", "x", "sh", "-c", "echo $A; id; pwd")
	for _, want := range []string{"b,c=d\n", "uid=12 gid=34 groups=34,56", "/tmp"} {
		wants(t, "exec", out, want)
	}
	file := filepath.Join(t.TempDir(), "process.json")
	data := `{"args":["sh","-c","echo from file; exit 5"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}`
	if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := c.run("exec", "--process", file, "x"); r.code != 5 || r.out != "from file\n" {
		t.Errorf("exec --process: %+v", r)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	c.quiet("exec", "-d", "--pid-file", pidFile, "x", "sleep", "1000")
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, "ps", c.ok("ps", "-f", "json", "x"), string(pid))
	// It is our child now, and until somebody waits for it the container's pid
	// namespace, and with it its init, cannot end.
	n, err := strconv.Atoi(string(pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(n, nil, 0, nil); err != nil {
		t.Error(err)
	}
}

func TestEventsStats(t *testing.T) {
	c := newLine(t)
	c.detached("run", "-d", "-b", c.bundle("sleep 1000"), "x")
	var e struct {
		Type, ID string
		Data     struct {
			Pids   struct{ Current int }
			Memory struct{ Usage struct{ Usage int } }
			CPU    struct{ Usage struct{ Total int } }
		}
	}
	if err := json.Unmarshal([]byte(c.ok("events", "--stats", "x")), &e); err != nil {
		t.Fatal(err)
	}
	if e.Type != "stats" || e.ID != "x" || e.Data.Pids.Current == 0 || e.Data.Memory.Usage.Usage == 0 || e.Data.CPU.Usage.Total == 0 {
		t.Errorf("event %+v", e)
	}
	cmd := c.command("events", "--interval", "20ms", "x")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	c.ok("kill", "x", "KILL")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("events goes on after the container has ended")
	}
}

func TestExitCodesOfTheCommandLine(t *testing.T) {
	c := newLine(t)
	for want, lines := range map[int][][]string{
		0: {{"--help"}, {"--version"}, {"-v"}, {"run", "--help"}, {"exec", "-h"}, {"features"}, {"delete", "-f", "none"}},
		1: {{"run"}, {"run", "a", "b"}, {"--no-such-flag"}, {"run", "--no-such-flag", "x"}, {"--log-format", "xml", "list"}, {"--root", "/", "list"}, {"state", "none"}, {"start", "none"}, {"kill", "none"}, {"kill", "none", "NOSIG"}, {"delete", "none"}},
		3: {{"no-such-command"}},
	} {
		for _, line := range lines {
			if r := c.run(line...); r.code != want {
				t.Errorf("%v: exit code %d, want %d: %s", line, r.code, want, r.err)
			}
		}
	}
}

func TestLog(t *testing.T) {
	c := newLine(t)
	file := filepath.Join(t.TempDir(), "log.json")
	r := c.run("--log", file, "--log-format=json", "start", "none")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var entry struct{ Level, Msg, Time string }
	if err := json.Unmarshal(data, &entry); err != nil || entry.Level != "error" || !strings.Contains(entry.Msg, "does not exist") {
		t.Errorf("log %q, %v", data, err)
	}
	if _, err := time.Parse(time.RFC3339, entry.Time); err != nil {
		t.Error(err)
	}
	wants(t, "stderr", r.err, "does not exist")
}

func TestSpecRuns(t *testing.T) {
	c := newLine(t)
	dir := t.TempDir()
	c.ok("spec", "-b", dir)
	if r := c.run("spec", "-b", dir); r.code != 1 || !strings.Contains(r.err, "exists") {
		t.Errorf("a second spec: %d, %q", r.code, r.err)
	}
	if err := os.Symlink(testRoot, filepath.Join(dir, "rootfs")); err != nil {
		t.Fatal(err)
	}
	r := c.run("run", "-b", dir, "x")
	if r.code != 1 || !strings.Contains(r.err, "terminal") {
		t.Errorf("a bundle with a terminal, without one: %d, %q", r.code, r.err)
	}
}

// flagsOfCommands are what engines, and runc's users and suites, write: a name with = takes a value.
// Help and the wrong use of each command are in the script commandline.
const flagsOfCommands = `
-                --root= --debug --log= --log-format= --systemd-cgroup --rootless= -v --version
create           -b= --bundle= --console-socket= --pid-file= --pidfd-socket= --no-pivot --no-new-keyring --preserve-fds=
run              -b= --bundle= --console-socket= --pid-file= --pidfd-socket= --no-pivot --no-new-keyring --preserve-fds= -d --detach --keep --no-subreaper
start
state
pause
resume
exec             -d --detach -t --tty -u= --user= -p= --process= --pid-file= --console-socket= --pidfd-socket= --cwd= -e= --env= -g= --additional-gids=
                 -c= --cap= --preserve-fds= --cgroup= --ignore-paused --no-new-privs --process-label= --apparmor=
kill             -a --all
delete           -f --force
list             -q --quiet -f= --format=
ps               -f= --format=
events           --stats --interval=
update           -r= --resources= --pids-limit= --memory= --memory-reservation= --memory-swap= --cpu-period= --cpu-quota= --cpu-burst= --cpu-share= --cpu-idle=
                 --cpu-rt-period= --cpu-rt-runtime= --cpuset-cpus= --cpuset-mems= --blkio-weight= --l3-cache-schema= --mem-bw-schema=
                 --kernel-memory= --kernel-memory-tcp=
checkpoint       --image-path= --work-path= --parent-path= --pre-dump --lazy-pages --page-server= --status-fd= --manage-cgroups-mode= --leave-running
                 --tcp-established --tcp-skip-in-flight --ext-unix-sk --shell-job --file-locks --empty-ns= --auto-dedup --link-remap
restore          -b= --bundle= --image-path= --work-path= --lazy-pages --manage-cgroups-mode= --tcp-established --ext-unix-sk --shell-job --file-locks
                 --empty-ns= --auto-dedup -d --detach --console-socket= --pid-file= --no-subreaper --no-pivot --lsm-profile= --lsm-mount-context=
features
spec             -b= --bundle= --rootless
`

func TestFlagsOfCommands(t *testing.T) {
	app := newApp("psi-runtime")
	name, flags := "", app.Flags
	for _, line := range strings.Split(strings.Trim(flagsOfCommands, "\n"), "\n") {
		words := strings.Fields(line)
		if line[0] != ' ' {
			if name, words = words[0], words[1:]; name != "-" {
				cmd := app.Command(name)
				if cmd == nil {
					t.Errorf("there is no command %s", name)
					continue
				}
				flags = cmd.Flags
			}
		}
		for _, word := range words {
			flag, _, value := strings.Cut(word, "=")
			has := slices.ContainsFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), strings.TrimLeft(flag, "-")) })
			if !has || takesValue(flags, flag) != value {
				t.Errorf("%s %s: there %t, with a value %t: want one with a value %t", name, flag, has, takesValue(flags, flag), value)
			}
		}
	}
}

func TestFlagsFirst(t *testing.T) {
	app := newApp("psi-runtime")
	for in, want := range map[string]string{
		"p delete x -f":                   "p delete --force x",
		"p --root /r kill x TERM -a":      "p --root /r kill --all x TERM",
		"p run x -b /b":                   "p run --bundle /b x",
		"p run x --bundle=/b -d":          "p run --bundle=/b --detach x",
		"p exec x sh -c true":             "p exec x sh -c true",
		"p ps x -ef":                      "p ps x -ef",
		"p exec -e A=b -t -e=C=d x -t":    "p exec --env A=b --tty --env=C=d x -t",
		"p --debug list":                  "p --debug list",
		"p rootfs build --python /p -o d": "p rootfs build --python /p -o d",
		"p run -- -x":                     "p run -- -x",
		"p":                               "p",
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(in)), " "); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
