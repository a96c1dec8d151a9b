package confine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// run runs a program under a confinement, as libcontainer does: by the path of a
// descriptor that is not closed at exec.
func run(t *testing.T, c Confinement, env []string, args ...string) (out string, code int) {
	t.Helper()
	argv, f, err := c.Wrap(args, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=/nowhere:/usr/bin:/bin"}, env...)
	// The child's descriptor 3 is what /proc/self/fd/3 means when it executes.
	cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{f}
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func denying(t *testing.T, names ...string) []byte {
	t.Helper()
	errno := uint(unix.ENOTTY)
	program, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActErrno, ErrnoRet: &errno}}})
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func TestProgramIsExecuted(t *testing.T) {
	for _, tc := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"sh", "-c", "echo $0 $1; exit 7", "a", "b c"}, "a b c\n", 7},
		{[]string{"/bin/echo", "-n", ""}, "", 0},
		{[]string{"no-such-program"}, "psi-init: exec: \"no-such-program\": executable file not found in $PATH", 127},
		{[]string{""}, "executable file not found in $PATH", 127},
		{[]string{"/no/such/program"}, "no such file or directory", 127},
		{[]string{"/etc/passwd"}, "permission denied", 126},
		{[]string{"/etc/passwd/x"}, "no such file", 127},
		{[]string{"/"}, "permission denied", 126},
		{[]string{strings.Repeat("x", 5000)}, `psi-init: exec: "xxx`, 127},
		// psi-init is gone once the program runs, and cannot be run again.
		{[]string{"/proc/self/fd/3"}, "no such file", 127},
	} {
		out, code := run(t, Confinement{}, nil, tc.args...)
		if code != tc.code || !strings.Contains(out, tc.out) {
			t.Errorf("%.80q: exit code %d, %q", tc.args, code, out)
		}
	}
}

// The program has its standard descriptors, its arguments and no_new_privs; nothing
// of psi-init is left in it.
func TestNothingIsLeft(t *testing.T) {
	c := Confinement{Filters: [][]byte{denying(t, "reboot")}, Domain: []Rule{{Full, "/"}}}
	out, code := run(t, c, []string{"A=b"}, "sh", "-c", `ls -l /proc/self/fd; tr '\0' ' ' </proc/$$/cmdline; readlink /proc/$$/exe
grep -E 'NoNewPrivs|Seccomp:|Seccomp_filters' /proc/$$/status; grep -c memfd /proc/$$/maps; echo $A`)
	if code != 0 && !strings.Contains(out, "b") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	plain, err := exec.Command("sh", "-c", "ls -l /proc/self/fd").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "psi-init") || strings.Contains(out, "memfd:") || strings.Count(out, " -> ") != strings.Count(string(plain), " -> ") {
		t.Errorf("something is left:\n%s\nwithout psi-init:\n%s", out, plain)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1", "\n0\n", "\nb\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestFiltersAreStacked(t *testing.T) {
	program := []string{"/usr/bin/python3.11", "-I", "-S", "-c", `
import os
for call in (lambda: os.mkdir("/proc/x"), lambda: os.rmdir("/proc/x"), lambda: os.link("/proc/x", "/proc/y")):
    try: call()
    except OSError as e: print(e.errno)
`}
	plain, code := run(t, Confinement{}, nil, program...)
	if code != 0 {
		t.Fatal(plain)
	}
	both := Confinement{Filters: [][]byte{denying(t, "mkdir", "mkdirat"), denying(t, "rmdir", "no_such_call")}}
	out, code := run(t, both, nil, program...)
	lines := strings.Fields(out)
	if code != 0 || len(lines) != 3 || lines[0] != "25" || lines[1] != "25" || lines[2] != strings.Fields(plain)[2] {
		t.Errorf("exit code %d, %q; without filters %q", code, out, plain)
	}
}

func TestBadFilter(t *testing.T) {
	for name, f := range map[string]*specs.LinuxSeccomp{
		"kill":     {DefaultAction: specs.ActKill},
		"arch":     {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchMIPS}},
		"operator": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "?"}}}}},
	} {
		if _, err := Compile(f); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// tree makes the files that the Landlock tests go for; a link leads from the allowed
// part into the other.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"open", "closed", "write"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "f"), []byte(d+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(filepath.Join(dir, "closed"), filepath.Join(dir, "link")),
		os.Symlink("../closed/f", filepath.Join(dir, "open", "link"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNoProgram(t *testing.T) {
	for _, f := range [][]byte{nil, {1}, make([]byte, 8*4097)} {
		if _, _, err := (Confinement{Filters: [][]byte{f}}).Wrap([]string{"true"}, 3); err == nil {
			t.Errorf("%d bytes: no error", len(f))
		}
	}
}

func needLandlock(t *testing.T) {
	t.Helper()
	if _, err := LandlockABI(); errors.Is(err, ErrNoLandlock) {
		t.Skip("needs Landlock: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func TestDomain(t *testing.T) {
	needLandlock(t)
	dir := tree(t)
	c := Confinement{Domain: []Rule{
		{Full, "/usr"}, {Full, "/lib"}, {Full, "/lib64"}, {Full, "/bin"}, {Full, "/etc/ld.so.cache"}, {Full, "/dev"}, {List, "/"},
		{Read, dir + "/open"}, {Write, dir + "/write"}, {Read, dir + "/link"}, {Read, dir + "/absent"}, {Read, dir + "/open/f/x"},
	}}
	for script, allowed := range map[string]bool{
		"cat %s/open/f":           true,
		"ls %s/closed":            true, // names can be seen, by the rule for /
		"cat %s/closed/f":         false,
		"cat %s/link/f":           false,
		"cat %s/open/link":        false,
		"cat %s/open/../closed/f": false,
		"echo x > %s/open/f":      false,
		"echo x > %s/open/new":    false,
		"rm %s/open/f":            false,
		"echo x > %s/write/f":     true,
		"mkdir %s/write/d && echo x > %[1]s/write/d/f && mv %[1]s/write/d/f %[1]s/write/g && rm -r %[1]s/write/d": true,
		"mv %s/write/f %[1]s/open/g":                           false,
		"ln %s/closed/f %[1]s/write/h":                         false,
		"ln -s %s/closed/f %[1]s/write/l && cat %[1]s/write/l": false,
		"mkfifo %s/write/fifo":                                 false,
		"cp /bin/true %s/write/p && %[1]s/write/p":             false,
		"cat /etc/passwd":                                      false,
		"mount -t tmpfs none %s/write":                         false,
		"cat /proc/self/root/etc/passwd":                       false,
	} {
		out, code := run(t, c, nil, "sh", "-c", fmt.Sprintf(strings.ReplaceAll(script, "%s", "%[1]s"), dir))
		if allowed != (code == 0) {
			t.Errorf("%s: exit code %d, %s", script, code, out)
		}
	}
}

// An empty domain allows nothing, and an unset one everything.
func TestEmptyDomain(t *testing.T) {
	needLandlock(t)
	if out, code := run(t, Confinement{Domain: []Rule{}}, nil, "/bin/true"); code != 126 {
		t.Errorf("exit code %d, %q", code, out)
	}
}

func TestBadRules(t *testing.T) {
	needLandlock(t)
	for _, r := range []Rule{{Read, ""}, {Read, "a"}, {Read, "/a/"}, {Read, "/a/../b"}, {"", "/a"}, {"all", "/a"}, {Read, "/" + strings.Repeat("a", 4096)}} {
		if _, _, err := (Confinement{Domain: []Rule{r}}).Wrap([]string{"true"}, 3); err == nil {
			t.Errorf("%.40v: no error", r)
		}
	}
}

func TestFileIsSealed(t *testing.T) {
	_, f, err := Confinement{}.Wrap([]string{"true"}, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing: %v", err)
	}
	if err := again.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncating: %v", err)
	}
}

// psi-init ends on orders that it does not understand; nobody but psi-runtime
// writes any, so that is about our own mistakes.
func TestBrokenOrders(t *testing.T) {
	program, err := program()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Confinement{Filters: [][]byte{denying(t, "reboot")}}.orders()
	if err != nil {
		t.Fatal(err)
	}
	for name, orders := range map[string][]byte{
		"cut":     whole[:len(whole)-8],
		"header":  whole[:7],
		"unknown": append(bytes.Repeat([]byte{9}, 4), make([]byte, 12)...),
		"rule":    {2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '/', 0, 0, 0, 0, 0, 0, 0},
		"filter":  {4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		f, err := sealed(program, orders)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/fd/3", "3", fmt.Sprint(len(program)), fmt.Sprint(len(orders)), "/bin/true")
		cmd.ExtraFiles = []*os.File{f}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(string(out), "psi-init: ") {
			t.Errorf("%s: exit code %d, %q", name, code, out)
		}
		f.Close()
	}
	for _, args := range [][]string{{}, {"3"}, {"x", "1", "1", "true"}, {"", "1", "1", "true"}, {"99", "1", "1", "true"}, {"99999999999999", "1", "1", "true"}} {
		f, err := sealed(program)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/fd/3", args...)
		cmd.ExtraFiles = []*os.File{f}
		if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 125 {
			t.Errorf("%q: %v", args, cmd.ProcessState)
		}
		f.Close()
	}
}

func TestCheckProc(t *testing.T) {
	if err := CheckProc(os.Getpid()); err != nil {
		t.Error(err)
	}
	for below, refused := range map[string]bool{
		"/proc/self/fd": true, "/proc/1/fd": true, "/proc/thread-self": true, "/proc/17": true,
		"/proc/cpuinfo": false, "/proc": false, "/proc/sys": false, "/procfs/1": false,
	} {
		file := filepath.Join(t.TempDir(), "mountinfo")
		line := "1 2 0:3 / " + below + " rw - tmpfs none rw\n"
		if err := os.WriteFile(file, []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := checkMounts(file); refused != (err != nil) {
			t.Errorf("%s: %v", below, err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	argv, f, err := Confinement{}.Wrap([]string{"/bin/true"}, 3)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for name, args := range map[string][]string{"plain": {"/bin/true"}, "psi-init": argv} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command(args[0], args[1:]...)
				cmd.ExtraFiles = []*os.File{f}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
