package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups/systemd"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/leakcheck"
)

// TestScripts runs the scripts of testdata/script: command lines against real
// containers, with what they must print and which codes they must exit with. Beside
// testscript's own commands a script has
//
//	psi ARGS…                  psi-runtime --root $ROOT ARGS…; must exit with 0, with ! with 1
//	code N psi ARGS…           the same, must exit with N
//	bundle DIR SCRIPT PATCH…   write a bundle that runs SCRIPT under sh; each PATCH is a file
//	                           of a JSON merge patch (RFC 7396) for its config.json
//	state ID STATUS            wait until the container has this status
//	until REGEXP psi ARGS…     repeat until the output matches; also with a program in
//	                           place of psi, and of a file with cat FILE
//	unattend ID                kill both processes that attend the container, at once
//	reap FILE                  kill and wait for the process whose pid the file holds
//	limit ID CONTROLLER V1-FILE V2-FILE REGEXP
//	                           look at a file of the container's cgroup, of whichever version the host has
//
//	terminal SOCKET FILE       listen on the socket for terminals, and append their output to the file
//	notified FILE              listen on $NOTIFY_SOCKET, and append what comes to the file
//
// psi-runtime is the program that make built, not this test's binary: some of what it
// does takes a static program, and a race detector would make each line last. It is
// in $PATH too. $ROOTFS is a root file system with a shell, $PYTHON the one with Python
// that make built. The condition [v2] says that the host has cgroup v2 only, [criu] that
// criu works with the kernel, [systemd] that systemd is the first process, [lsm] that the
// kernel takes LSM programs, [sys_resource] that root may raise limits.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			leakcheck.Check(t)
			deadline, _ := t.Deadline() // a command that hangs is ended, and the script says which
			testscript.Run(t, testscript.Params{
				Files:     []string{file},
				Deadline:  deadline,
				Setup:     setUpScript,
				Condition: scriptCondition,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"psi": scriptPsi, "code": scriptCode, "bundle": scriptBundle, "state": scriptState,
					"until": scriptUntil, "reap": scriptReap, "limit": scriptLimit,
					"notified": scriptNotified, "unattend": scriptUnattend, "terminal": scriptTerminal,
				},
			})
		})
	}
}

// scriptCondition tells what the machine has. The second kernel has everything but systemd, which
// only TestUnderSystemd starts: there, what is missing is an error.
func scriptCondition(name string) (bool, error) {
	var missing error
	switch name {
	case "v2":
		_, missing = os.Stat("/sys/fs/cgroup/cgroup.controllers")
	case "lsm":
		missing = lacksFiles()
	case "sys_resource":
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); has != 1 {
			missing = errors.Join(errors.New("not in the bounding set"), err)
		}
	case "systemd":
		return systemd.IsRunningSystemd(), nil
	case "criu":
		if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
			missing = fmt.Errorf("criu check: %w: %s", err, out)
		}
	default:
		return false, fmt.Errorf("condition %q is not known", name)
	}
	if missing != nil && os.Getenv("PSI_TEST_VM") != "" {
		return false, fmt.Errorf("the second kernel has %s, and it does not work: %w", name, missing)
	}
	return missing == nil, nil
}

func setUpScript(env *testscript.Env) error {
	// 0755 all the way: the container's root may have no right to anything else.
	for dir := env.WorkDir; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(env.WorkDir, "root")
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "psi-runtime")
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("the scripts run what make built (make build rootfs): %w", err)
	}
	env.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	env.Setenv("PSI", program)
	env.Setenv("PYTHON", filepath.Join(bin, "../build/rootfs"))
	env.Setenv("ROOT", root)
	env.Setenv("ROOTFS", testRoot)
	env.Defer(func() {
		items, _ := os.ReadDir(root)
		for _, item := range items {
			cmd := exec.Command(program, "--root", root, "delete", "--force", item.Name())
			if out, err := cmd.CombinedOutput(); err != nil {
				env.T().Log("deleting "+item.Name()+":", err, string(out))
			}
		}
	})
	return nil
}

// runPsi runs a command line to its end and returns the exit code. Its output goes
// to files, because containers that it leaves behind hold on to it.
func runPsi(ts *testscript.TestScript, args []string) (int, string, string) {
	var text [2]string
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(ts.MkAbs("."), ".out-")
		ts.Check(err)
		defer os.Remove(f.Name())
		defer f.Close()
		files[i] = f
	}
	cmd := exec.Command(ts.Getenv("PSI"), append([]string{"--root", ts.Getenv("ROOT")}, args...)...)
	cmd.Args[0] = "psi-runtime"
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "XDG_RUNTIME_DIR", "HOME"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v: %v", cmd.Args, err)
	}
	for i, f := range files {
		text[i] = ts.ReadFile(f.Name())
	}
	return cmd.ProcessState.ExitCode(), text[0], text[1]
}

func show(ts *testscript.TestScript, out, errs string) {
	_, _ = ts.Stdout().Write([]byte(out))
	_, _ = ts.Stderr().Write([]byte(errs))
}

func scriptPsi(ts *testscript.TestScript, neg bool, args []string) {
	want := 0
	if neg {
		want = 1
	}
	expectCode(ts, want, args)
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[1] != "psi" {
		ts.Fatalf("usage: code N psi ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	expectCode(ts, want, args[2:])
}

func expectCode(ts *testscript.TestScript, want int, args []string) {
	code, out, errs := runPsi(ts, args)
	show(ts, out, errs)
	if code != want {
		ts.Fatalf("psi-runtime %v: exit code %d, want %d", args, code, want)
	}
}

func scriptBundle(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: bundle DIR SCRIPT [PATCH]…")
	}
	s := container.ExampleSpec(false)
	s.Process.Terminal = false
	s.Process.Args = []string{"/bin/sh", "-c", args[1]}
	s.Process.Rlimits = nil
	s.Root.Path = testRoot
	data, err := json.Marshal(s)
	ts.Check(err)
	var config any
	ts.Check(json.Unmarshal(data, &config))
	for _, name := range args[2:] {
		var patch any
		ts.Check(json.Unmarshal([]byte(os.Expand(ts.ReadFile(name), ts.Getenv)), &patch))
		config = mergePatch(config, patch)
	}
	data, err = json.Marshal(config)
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, specFile), data, 0o644))
}

// mergePatch is RFC 7396.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = map[string]any{}
	}
	for name, value := range changes {
		if value == nil {
			delete(object, name)
		} else {
			object[name] = mergePatch(object[name], value)
		}
	}
	return object
}

// patience is for a machine that is busy, or emulated.
func patience(ts *testscript.TestScript, what string, is func() bool) {
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("after 30 s it is still not true that %s", what)
		}
	}
}

func scriptState(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: state ID STATUS")
	}
	var last string
	patience(ts, args[0]+" is "+args[1], func() bool {
		c, err := container.Load(ts.Getenv("ROOT"), args[0])
		if err != nil {
			ts.Fatalf("%v", err)
		}
		defer c.Close()
		last, err = c.Status()
		ts.Check(err)
		return last == args[1]
	})
}

func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: until REGEXP psi ARGS… | cat FILE | exec PROGRAM ARGS…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out, errs string
	patience(ts, "the output matches "+args[0], func() bool {
		switch args[1] {
		case "psi":
			_, out, errs = runPsi(ts, args[2:])
		case "cat":
			data, _ := os.ReadFile(ts.MkAbs(args[2]))
			out = string(data)
		default:
			cmd := exec.Command(args[1], args[2:]...)
			cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "XDG_RUNTIME_DIR=" + ts.Getenv("XDG_RUNTIME_DIR")}
			data, _ := cmd.Output()
			out = string(data)
		}
		return pattern.MatchString(out)
	})
	show(ts, out, errs)
}

func scriptUnattend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unattend ID")
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	ts.Check(err)
	var pids []int
	for _, file := range files {
		line, _ := os.ReadFile(file)
		words := strings.ReplaceAll(string(line), "\x00", " ")
		if strings.Contains(words, "--root "+ts.Getenv("ROOT")+" attend ") && strings.HasSuffix(words, " "+args[0]+" ") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			ts.Check(err)
			pids = append(pids, pid)
		}
	}
	if len(pids) != 2 {
		ts.Fatalf("processes %v attend %s: want two", pids, args[0])
	}
	// Stopped, neither of them sees the other die.
	for _, signal := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, pid := range pids {
			ts.Check(unix.Kill(pid, signal))
		}
	}
	patience(ts, "nobody attends "+args[0], func() bool {
		return !slices.ContainsFunc(pids, func(pid int) bool { return unix.Kill(pid, 0) == nil && !zombie(pid) })
	})
}

// zombie reports whether all threads of a process have ended: until then its sockets are open.
func zombie(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	threads, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	return err != nil || strings.Contains(string(stat), ") Z ") && len(threads) <= 1
}

func scriptReap(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: reap FILE")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(unix.Kill(pid, unix.SIGKILL))
	_, err = unix.Wait4(pid, nil, 0, nil)
	ts.Check(err)
}

func scriptNotified(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: notified FILE")
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ts.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	file := ts.MkAbs(args[0])
	go func() {
		buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
		for {
			n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
				fds, _ := unix.ParseUnixRights(&messages[0])
				for _, fd := range fds { // the barrier
					_ = unix.Close(fd)
				}
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				return
			}
			_, _ = f.Write(append(buf[:n], '\n'))
			f.Close()
		}
	}()
}

func scriptTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: terminal SOCKET FILE")
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: ts.MkAbs(args[0]), Net: "unix"})
	ts.Check(err)
	ts.Defer(func() { listener.Close() })
	output, err := os.OpenFile(ts.MkAbs(args[1]), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	ts.Defer(func() { output.Close() })
	go func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			if socket, err := conn.File(); err == nil {
				if master, err := receiveFile(socket); err == nil {
					go func() { _, _ = io.Copy(output, master); master.Close() }()
				}
				socket.Close()
			}
			conn.Close()
		}
	}()
}

func scriptLimit(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 5 {
		ts.Fatalf("usage: limit ID CONTROLLER V1-FILE V2-FILE REGEXP")
	}
	c, err := container.Load(ts.Getenv("ROOT"), args[0])
	ts.Check(err)
	defer c.Close()
	controller, file := args[1], args[2]
	v2, err := scriptCondition("v2")
	ts.Check(err)
	if v2 {
		controller, file = "", args[3]
	}
	dir, err := c.Cgroup(controller)
	ts.Check(err)
	data, err := os.ReadFile(filepath.Join(dir, file))
	ts.Check(err)
	if regexp.MustCompile("(?m)"+args[4]).Match(data) == neg {
		ts.Fatalf("%s of %s: %q (pattern %q)", file, args[0], data, args[4])
	}
}
