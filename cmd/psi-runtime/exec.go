package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

// execOptions are the flags of exec. Those that are "" or empty leave the
// bundle's process as it is.
type execOptions struct {
	id, cwd, user, process   string
	apparmor, processLabel   string
	consoleSocket, pidfd     string
	pidFile                  string
	args, env, caps, cgroups []string
	gids                     []int64
	tty, detach              bool
	noNewPrivs               *bool
	ignorePaused             bool
	preserveFDs              int
}

func execCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "exec",
		Usage:       "run one more process in a container",
		ArgsUsage:   "ID COMMAND [ARGUMENT]...   (or: -p process.json ID)",
		Description: "The exit code is the process's; 255 if it could not be started.",
		Flags: append(processFlags(),
			&cli.StringFlag{Name: "cwd", Usage: "working directory in the container"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set `NAME=VALUE`"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`UID[:GID]`"},
			&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "one more group"},
			&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "`FILE` with the process as JSON"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when it runs"},
			&cli.StringFlag{Name: "process-label", Usage: "SELinux label"},
			&cli.StringFlag{Name: "apparmor", Usage: "AppArmor profile"},
			&cli.BoolFlag{Name: "no-new-privs", Usage: "it cannot gain privileges"},
			&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "one more capability"},
			&cli.StringSliceFlag{Name: "cgroup", Usage: "run it in `[CONTROLLER:]GROUP` below the container's"},
			&cli.BoolFlag{Name: "ignore-paused", Usage: "start it although the container is paused"},
		),
		Action: func(c *cli.Context) error {
			err := needArgs(c, 1, -1)
			if err == nil {
				err = startProcess(g, parseExec(c))
			}
			var status exitStatus
			if err == nil || errors.As(err, &status) {
				return err
			}
			return &codedError{codeExecFailure, fmt.Errorf("exec failed: %w", err)}
		},
	}
}

func parseExec(c *cli.Context) *execOptions {
	o := &execOptions{
		id: c.Args().First(), cwd: c.String("cwd"), user: c.String("user"), process: c.String("process"),
		apparmor: c.String("apparmor"), processLabel: c.String("process-label"),
		consoleSocket: c.String("console-socket"), pidfd: c.String("pidfd-socket"), pidFile: c.String("pid-file"),
		args: c.Args().Tail(), env: c.StringSlice("env"), caps: c.StringSlice("cap"), cgroups: c.StringSlice("cgroup"),
		gids: c.Int64Slice("additional-gids"), tty: c.Bool("tty"), detach: c.Bool("detach"),
		ignorePaused: c.Bool("ignore-paused"), preserveFDs: c.Int("preserve-fds"),
	}
	if c.IsSet("no-new-privs") {
		v := c.Bool("no-new-privs")
		o.noNewPrivs = &v
	}
	return o
}

// startProcess starts the process and, unless detached, waits for it.
func startProcess(g *global, o *execOptions) error {
	c, err := container.LoadLocked(g.root, o.id, true) // the policy stays until the process has it
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := o.specProcess(c)
	if err != nil {
		return err
	}
	if err := checkTerminal(p.Terminal, o.detach, o.consoleSocket); err != nil {
		return err
	}
	opts := container.ProcessOptions{Process: p, IgnorePaused: o.ignorePaused, LogLevel: logrus.GetLevel()}
	if opts.SubCgroups, err = subCgroups(o.cgroups); err != nil {
		return err
	}
	var env []string
	if opts.ExtraFiles, env, err = extraFiles(o.preserveFDs); err != nil {
		return err
	}
	p.Env = append(p.Env, env...)
	if opts.PIDFile, err = absolute(o.pidFile); err != nil {
		return err
	}
	if o.pidfd != "" {
		if opts.PIDFDSocket, err = dialSocket(o.pidfd); err != nil {
			return err
		}
		defer opts.PIDFDSocket.Close()
	}
	if err := guardExec(c, &opts); err != nil {
		return err
	}
	if o.detach {
		return execDetached(c, o, opts)
	}
	return execForeground(c, opts)
}

func execDetached(c *container.Container, o *execOptions, opts container.ProcessOptions) (err error) {
	if opts.Process.Terminal {
		if opts.ConsoleSocket, err = dialSocket(o.consoleSocket); err != nil {
			return err
		}
		defer opts.ConsoleSocket.Close()
	} else {
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	_, err = c.Exec(opts)
	return err
}

func execForeground(c *container.Container, opts container.ProcessOptions) error {
	signals := catchSignals()
	streams, err := openStreams(opts.Process.Terminal)
	if err != nil {
		return err
	}
	defer streams.restore()
	opts.Stdin, opts.Stdout, opts.Stderr, opts.ConsoleSocket = streams.files()
	p, err := c.Exec(opts)
	if err := errors.Join(err, c.Unlock()); err != nil {
		return err
	}
	if err := streams.started(); err != nil {
		return errors.Join(err, p.Signal(9))
	}
	signals.ready()
	status, err := signals.forwardTo(p, streams)
	streams.drain()
	if err != nil {
		return err
	}
	return exitStatus(status)
}

// specProcess is the process to start: a file's, or the bundle's with the flags'
// changes.
func (o *execOptions) specProcess(c *container.Container) (*specs.Process, error) {
	if o.process != "" {
		data, err := os.ReadFile(o.process)
		if err != nil {
			return nil, fmt.Errorf("reading the process: %w", err)
		}
		p := &specs.Process{}
		if err := json.Unmarshal(data, p); err != nil {
			return nil, fmt.Errorf("reading %s: %w", o.process, err)
		}
		return p, nil
	}
	if len(o.args) == 0 {
		return nil, errors.New("exec args cannot be empty: name a command, or a file with --process")
	}
	spec, _, err := loadSpec(c.Bundle())
	if err != nil {
		return nil, err
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("the bundle %s has no process to take the environment from: use --process", c.Bundle())
	}
	return spec.Process, o.change(spec.Process)
}

func (o *execOptions) change(p *specs.Process) error {
	p.Args = o.args
	p.Env = append(p.Env, o.env...)
	p.Terminal = o.tty
	for _, s := range []struct{ from, to *string }{
		{&o.cwd, &p.Cwd}, {&o.apparmor, &p.ApparmorProfile}, {&o.processLabel, &p.SelinuxLabel},
	} {
		if *s.from != "" {
			*s.to = *s.from
		}
	}
	if o.noNewPrivs != nil {
		p.NoNewPrivileges = *o.noNewPrivs
	}
	addCapabilities(p, o.caps)
	for _, gid := range o.gids {
		if gid < 0 || gid > 1<<32-1 {
			return fmt.Errorf("--additional-gids %d: it is a number from 0 to 4294967295", gid)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
	}
	return setUser(p, o.user)
}

// addCapabilities adds to what the process has; ambient ones only take effect
// with inheritable ones.
func addCapabilities(p *specs.Process, caps []string) {
	if len(caps) == 0 {
		return
	}
	if p.Capabilities == nil {
		p.Capabilities = &specs.LinuxCapabilities{}
	}
	sets := []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted}
	if p.Capabilities.Inheritable != nil {
		sets = append(sets, &p.Capabilities.Ambient)
	}
	for _, set := range sets {
		*set = append(slices.Clone(*set), caps...)
	}
}

func setUser(p *specs.Process, user string) error {
	if user == "" {
		return nil
	}
	uid, gid, hasGID := strings.Cut(user, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("--user %q: it is UID or UID:GID, in numbers", user)
	}
	p.User.UID = uint32(n)
	if hasGID {
		if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
			return fmt.Errorf("--user %q: it is UID or UID:GID, in numbers", user)
		}
		p.User.GID = uint32(n)
	}
	return nil
}

// subCgroups reads --cgroup: one group for all hierarchies (or for cgroup2), or
// several of the form controller[,controller…]:group.
func subCgroups(args []string) (map[string]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	groups := map[string]string{}
	for _, a := range args {
		controllers, group, named := strings.Cut(a, ":")
		if !named {
			if len(args) > 1 {
				return nil, fmt.Errorf("invalid --cgroup argument: %s (missing <controller>: prefix)", a)
			}
			return map[string]string{"": a}, nil
		}
		for _, name := range strings.Split(controllers, ",") {
			if name == "" {
				return nil, fmt.Errorf("invalid --cgroup argument: %s (empty <controller> prefix)", a)
			}
			if _, twice := groups[name]; twice {
				return nil, fmt.Errorf("invalid --cgroup argument(s): controller %s specified multiple times", name)
			}
			groups[name] = group
		}
	}
	return groups, nil
}
