package container

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// Without no-new-privileges, loading a seccomp filter takes CAP_SYS_ADMIN, so
// libcontainer's init loads it before it gives capabilities up; and then needs, for
// what it still has to do, system calls that a bundle's filter may deny. For such a
// bundle the filter is loaded later, by a process that libcontainer's init executes
// in place of the bundle's program:
//
//	libcontainer's init ──exec──► argv[0] late BINARY PROCESS ──exec──► the program
//	has capabilities + 2          loads the filter                      has its own
//
// BINARY is a sealed copy of our program and PROCESS a lateProcess as JSON, both
// passed as file descriptors. Beside the program's capabilities it holds CAP_SYS_ADMIN
// for the filter and CAP_SETPCAP to take both out of the bounding set; with the last
// exec the kernel drops them. Its environment is empty: the bundle's is not trusted
// with a process that has more than the bundle's own capabilities. Nor is a /proc that
// an image or a bundle brought: what is executed there would have them without the filter.
// (Who may mount inside a running container can still bring one while exec looks.)

// lateWord is a reserved word of the command line, as `init` is.
const lateWord = "late"

// lateProcess is what the process of lateWord becomes.
type lateProcess struct {
	Args         []string              `json:"args"`
	Env          []string              `json:"env"`
	Capabilities *configs.Capabilities `json:"capabilities"`
	Seccomp      *configs.Seccomp      `json:"seccomp"`
}

// initCalls are system calls that libcontainer's init makes after it has loaded a
// filter without no-new-privileges.
func initCalls() []string {
	return []string{"getcwd", "chdir", "setgroups", "setgid", "setuid", "capget", "capset", "prctl"}
}

// needsLate reports whether the filter must be loaded late. One that asks an agent
// cannot be: the agent is told by libcontainer's init.
func needsLate(filter *configs.Seccomp) bool {
	if filter == nil || filter.ListenerPath != "" {
		return false
	}
	return slices.ContainsFunc(initCalls(), func(name string) bool { return denies(filter, name) })
}

// denies reports whether the filter may stop a system call.
func denies(filter *configs.Seccomp, name string) bool {
	allowed := func(a configs.Action) bool { return a == configs.Allow || a == configs.Log }
	named := false
	for _, call := range filter.Syscalls {
		if call == nil || call.Name != name {
			continue
		}
		if !allowed(call.Action) {
			return true
		}
		named = named || len(call.Args) == 0
	}
	return !named && !allowed(filter.DefaultAction)
}

// takeLate takes a filter that must be loaded late out of the config.
func takeLate(config *configs.Config) *configs.Seccomp {
	if config.NoNewPrivileges || !needsLate(config.Seccomp) {
		return nil
	}
	filter := config.Seccomp
	config.Seccomp = nil
	return filter
}

// wrapLate puts the late process in place of p's program. Close the files when p
// has been started.
func wrapLate(p *libcontainer.Process, filter *configs.Seccomp, stateDir string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
			files = nil
		}
	}()
	if err := checkStatic(); err != nil {
		return nil, err
	}
	binary, err := exeseal.CloneSelfExe(stateDir)
	if err != nil {
		return nil, fmt.Errorf("copying our own program: %w", err)
	}
	files = append(files, binary)
	own := p.Capabilities
	if own == nil { // libcontainer leaves them alone
		own = &configs.Capabilities{Bounding: capabilities.KnownCapabilities()}
	}
	data, err := json.Marshal(lateProcess{Args: p.Args, Env: p.Env, Capabilities: own, Seccomp: filter})
	if err != nil {
		return files, fmt.Errorf("encoding a process: %w", err)
	}
	description, err := memfd("process", data)
	if err != nil {
		return files, err
	}
	files = append(files, description)
	first := 3 + len(p.ExtraFiles)
	p.ExtraFiles = append(slices.Clone(p.ExtraFiles), files...)
	p.Args = []string{"/proc/self/fd/" + strconv.Itoa(first), lateWord, strconv.Itoa(first), strconv.Itoa(first + 1)}
	p.Env = nil
	p.Capabilities = withMore(own)
	return files, nil
}

// checkStatic refuses a build that could not run in a container's root.
func checkStatic() error {
	own, err := elf.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("reading our own program: %w", err)
	}
	defer own.Close()
	for _, p := range own.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("the bundle's seccomp filter denies what libcontainer's init needs, and must be loaded late: that takes a statically linked build (make build)")
		}
	}
	return nil
}

// withMore adds the late process's own capabilities.
func withMore(c *configs.Capabilities) *configs.Capabilities {
	add := func(names []string) []string {
		return append(slices.Clone(names), "CAP_SYS_ADMIN", "CAP_SETPCAP")
	}
	return &configs.Capabilities{
		Bounding: add(c.Bounding), Effective: add(c.Effective), Permitted: add(c.Permitted),
		Inheritable: add(c.Inheritable), Ambient: add(c.Ambient),
	}
}

// becomeLate is the process of lateWord. It returns only with an error.
func becomeLate(args []string) error {
	p, err := readLate(args)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	bounding, err := capabilities.New(p.Capabilities)
	if err != nil {
		return err
	}
	if err := bounding.ApplyBoundingSet(); err != nil {
		return fmt.Errorf("setting the bounding set: %w", err)
	}
	more := withMore(p.Capabilities)
	sets, err := capabilities.New(&configs.Capabilities{
		Bounding: p.Capabilities.Bounding, Inheritable: p.Capabilities.Inheritable, Ambient: p.Capabilities.Ambient,
		Effective: more.Effective, Permitted: more.Permitted,
	})
	if err != nil {
		return err
	}
	if err := sets.ApplyCaps(); err != nil {
		return err
	}
	env := lateEnv(p.Env, os.Getenv("HOME"))
	program, err := exec.LookPath(p.Args[0])
	if err != nil {
		return err
	}
	if _, err := seccomp.InitSeccomp(p.Seccomp); err != nil {
		return fmt.Errorf("unable to init seccomp: %w", err)
	}
	return &os.PathError{Op: "exec", Path: program, Err: syscall.Exec(program, p.Args, env)}
}

// readLate reads the description; neither it nor the binary stays open in the program.
func readLate(args []string) (*lateProcess, error) {
	if len(args) != 2 {
		return nil, errors.New("the late process takes two file descriptors")
	}
	var fds [2]int
	for i, text := range args {
		var err error
		if fds[i], err = strconv.Atoi(text); err != nil {
			return nil, err
		}
		unix.CloseOnExec(fds[i])
	}
	p := &lateProcess{}
	if err := json.NewDecoder(os.NewFile(uintptr(fds[1]), "process")).Decode(p); err != nil {
		return nil, fmt.Errorf("reading a process: %w", err)
	}
	return p, nil
}

// lateEnv is the program's environment as libcontainer would make it: the last of
// several values of a name counts, HOME is the user's unless it is set, and PATH
// is where the program is looked for.
func lateEnv(env []string, home string) []string {
	values := map[string]string{}
	var names []string
	for _, pair := range append([]string{"HOME=" + home}, env...) {
		name, value, _ := strings.Cut(pair, "=")
		if name == "HOME" && value == "" {
			continue
		}
		if _, had := values[name]; !had {
			names = append(names, name)
		}
		values[name] = value
	}
	out := make([]string, 0, len(names))
	for _, name := range names {
		out = append(out, name+"="+values[name])
	}
	_ = os.Setenv("PATH", values["PATH"])
	return out
}

// memfd makes a file in memory, ready to be read.
func memfd(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	return f, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
