package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Who runs a bundle's hooks, and the status in the state that they read:
//
//	hook             when                                      run by                status
//	prestart         create, before the root is changed        libcontainer          created
//	createRuntime    the same, after prestart                  libcontainer          created
//	createContainer  the same, in the container's namespaces   libcontainer's init   created
//	startContainer   start, in the container                   libcontainer's init   created
//	poststart        start, when the program has been executed Start                 running
//	poststop         delete, when everything else has gone     Delete, Purge, GC     stopped
//
// libcontainer would tell the first three "creating" (they come after step 2 of the
// specification's lifecycle, which makes it "created"), would run poststart before
// the program, and would let a failing poststop hook keep the others from running.
// So the first three go through hookWord, which corrects the state, and the last
// two are kept in the container's journal and never reach libcontainer.

// hookWord is a reserved word of the command line, as `init` is: the process
//
//	argv[0] hook PATH ARGV…
//
// corrects the state on its standard input and becomes the hook, before Go begins
// (become_hook.go). It is the same process, so that a hook's time limit ends the hook.
const hookWord = "hook"

// initFailed is the exit code of a libcontainer init that could not become the program.
const initFailed = 255

// lateHooks are the hooks that psi runs itself.
type lateHooks struct {
	// Annotations are the bundle's, for the state of poststop.
	Annotations map[string]string `json:"annotations,omitempty"`

	Poststart []specs.Hook `json:"poststart,omitempty"`
	Poststop  []specs.Hook `json:"poststop,omitempty"`
}

// checkHooks refuses what no hook may be.
func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for name, list := range map[string][]specs.Hook{
		"prestart":      h.Prestart, //nolint:staticcheck // deprecated, and still used
		"createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer,
		"startContainer": h.StartContainer, "poststart": h.Poststart, "poststop": h.Poststop,
	} {
		for i, hook := range list {
			if !filepath.IsAbs(hook.Path) {
				return fmt.Errorf("config.json: hooks.%s[%d].path %q must be absolute", name, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("config.json: hooks.%s[%d].timeout %d must be greater than zero", name, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// adaptHooks leaves in the config what libcontainer shall run, and returns the rest.
func adaptHooks(config *configs.Config, h *specs.Hooks) *lateHooks {
	if h == nil {
		return nil
	}
	for _, name := range []configs.HookName{configs.Prestart, configs.CreateRuntime, configs.CreateContainer} {
		for i, hook := range config.Hooks[name] {
			command, ok := hook.(configs.CommandHook)
			if !ok {
				continue
			}
			own := *command.Command
			argv := own.Args
			if len(argv) == 0 {
				argv = []string{own.Path}
			}
			own.Args = append([]string{os.Args[0], hookWord, own.Path}, argv...)
			own.Path = "/proc/self/exe"
			config.Hooks[name][i] = configs.NewCommandHook(&own)
		}
	}
	delete(config.Hooks, configs.Poststart)
	delete(config.Hooks, configs.Poststop)
	if len(h.Poststart)+len(h.Poststop) == 0 {
		return nil
	}
	return &lateHooks{Poststart: h.Poststart, Poststop: h.Poststop}
}

// runHooks runs hooks in order. A failure is logged, and changes nothing else.
func runHooks(name string, hooks []specs.Hook, state specs.State) {
	for i, h := range hooks {
		command := &configs.Command{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			limit := time.Duration(*h.Timeout) * time.Second
			command.Timeout = &limit
		}
		if err := command.Run(&state); err != nil {
			logrus.Warnf("container %s: running %s hook #%d (%s): %v", state.ID, name, i, h.Path, err)
		}
	}
}

// hookState is the state that a hook of ours reads.
func (c *Container) hookState(status specs.ContainerState) specs.State {
	return specs.State{
		Version: specs.Version, ID: c.id, Status: status, Pid: c.pid,
		Bundle: c.Bundle(), Annotations: c.Annotations(),
	}
}

// poststop runs the container's last hooks; everything else of it has gone.
func (e *entry) poststop() {
	if e.Hooks == nil {
		return
	}
	runHooks("poststop", e.Hooks.Poststop, specs.State{
		Version: specs.Version, ID: e.ID, Status: specs.StateStopped,
		Bundle: e.Bundle, Annotations: e.Hooks.Annotations,
	})
}

// image identifies the program that a process executes.
func image(pid int) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(pid)+"/exe", &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// startWithHooks starts the container and returns when its program has been
// executed. libcontainer's init runs the startContainer hooks, and executes the
// program, after Exec has returned, with nobody left to tell how it went.
func (c *Container) startWithHooks() error {
	init, err := image(c.pid)
	if err != nil {
		return fmt.Errorf("looking at the first process of container %s: %w", c.id, err)
	}
	if err := c.lc.Exec(); err != nil {
		return fmt.Errorf("starting container %s: %w", c.id, err)
	}
	for {
		now, err := image(c.pid)
		if err == nil && now != init {
			break
		}
		if c.ended(0) {
			// A program that lives for less than a look is possible; one that ends like init does is not.
			if code, err := exitCode(c.pid); err == nil && code == initFailed {
				return fmt.Errorf("starting container %s: a startContainer hook failed, or its program could not be executed: its standard error says more", c.id)
			}
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	if c.entry.Hooks != nil {
		runHooks("poststart", c.entry.Hooks.Poststart, c.hookState(specs.StateRunning))
	}
	return nil
}

// needsWatch reports whether start has to wait for the program.
func (c *Container) needsWatch() bool {
	config := c.config()
	return c.entry.Hooks != nil && len(c.entry.Hooks.Poststart) > 0 || config.HasHook(configs.StartContainer)
}
