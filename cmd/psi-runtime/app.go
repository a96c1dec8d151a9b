package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/engine"
)

// version and commit are set by the build: -ldflags "-X main.version=… -X main.commit=…".
var (
	version = "0.1.0-dev"
	commit  = ""
)

// Exit codes that engines rely on.
const (
	codeFailure        = 1
	codeUnknownCommand = 3
	codeExecFailure    = 255
)

// memoryCeiling is where the garbage collector starts to work. Below it, in a
// process that mostly lives for milliseconds, collecting only costs.
const memoryCeiling = 64 << 20

// global holds the options that stand before the command.
type global struct {
	root          string // "" is the default root
	debug         bool
	logFile       string // "" is stderr
	logFormat     string // text or json
	systemdCgroup bool
	rootless      string // true, false or auto
	policy        string // name of the policy of every container; "" is none
	config        string // "" is engine.ConfigFile, if it is there
	class         string // the name that we were started by: a class of the configuration
}

// exitStatus ends the program with a code and without a word: the container's own
// status, which is not an error.
type exitStatus int

func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// codedError ends the program with a message and a code other than 1.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// execute runs one command line and returns its exit code.
func execute(args []string) int {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryCeiling)
	logrus.SetLevel(logrus.InfoLevel)
	if slices.Contains(args, "run") || slices.Contains(args, "create") {
		// Before anything is read: it is the longest wait of all, and happens meanwhile.
		go container.Warm()
	}
	app := newApp(filepath.Base(args[0]))
	return report(app.Run(flagsFirst(app, args)))
}

// report logs an error as the one line that engines read, and tells the code.
func report(err error) int {
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	code := codeFailure
	var coded *codedError
	if errors.As(err, &coded) {
		code = coded.code
	}
	logrus.Error(err)
	if logrus.StandardLogger().Out != os.Stderr {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

func newApp(class string) *cli.App {
	g := &global{class: class}
	app := &cli.App{
		Name:                 "psi-runtime",
		Usage:                "OCI runtime for bundles, with or without a psi policy",
		HideVersion:          true,
		EnableBashCompletion: false,
		// a comma is part of the value, as it is for runc: exec --env LIST=1,2
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "directory of container states (default: " + container.DefaultRunDir + ")"},
			&cli.BoolFlag{Name: "debug", Usage: "log what is done"},
			&cli.StringFlag{Name: "log", Usage: "file to log to (default: stderr)"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "text or json"},
			&cli.BoolFlag{Name: "systemd-cgroup", Usage: `let systemd make the cgroups; the bundle's cgroupsPath is "slice:prefix:name"`},
			&cli.StringFlag{Name: "rootless", Value: "auto", Usage: "go on without cgroups that we may not make (true, false or auto)"},
			&cli.StringFlag{Name: "policy", Usage: "`NAME` of the policy of every container; its own may only be narrower"},
			&cli.StringFlag{Name: "config", Usage: "`FILE` that says which policies are mandatory (default: " + engine.ConfigFile + ", if there is one)"},
			&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"},
		},
		Commands: []*cli.Command{
			runCommand(g), createCommand(g), startCommand(g), stateCommand(g), killCommand(g),
			deleteCommand(g), listCommand(g), execCommand(g), psCommand(g), eventsCommand(g), connectCommand(g),
			pauseCommand(g), resumeCommand(g), updateCommand(g),
			checkpointCommand(g), restoreCommand(g),
			specCommand(), featuresCommand(), bundleCommand(), rootfsCommand(), policyCommand(g), gcCommand(), installCommand(), uninstallCommand(), attendCommand(g),
		},
		Before: func(c *cli.Context) error { return g.parse(c) },
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				printVersion(c)
				return nil
			}
			if c.NArg() > 0 {
				return &codedError{codeUnknownCommand, fmt.Errorf("unknown command %q: see psi-runtime --help", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
		OnUsageError:   usageError,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	for _, cmd := range app.Commands {
		cmd.OnUsageError = usageError
		cmd.HideHelpCommand = true
	}
	return app
}

func usageError(c *cli.Context, err error, _ bool) error {
	return fmt.Errorf("%w: see %s --help", err, c.Command.HelpName)
}

// parse reads the global options and sets the logger up.
func (g *global) parse(c *cli.Context) error {
	*g = global{
		root:          c.String("root"),
		debug:         c.Bool("debug"),
		logFile:       c.String("log"),
		logFormat:     c.String("log-format"),
		systemdCgroup: c.Bool("systemd-cgroup"),
		rootless:      c.String("rootless"),
		policy:        c.String("policy"),
		config:        c.String("config"),
		class:         g.class,
	}
	if err := g.openLog(); err != nil {
		return err
	}
	if !c.IsSet("root") {
		return nil
	}
	root, err := filepath.Abs(g.root)
	if err != nil {
		return fmt.Errorf("finding --root %s: %w", g.root, err)
	}
	if root == "/" {
		return errors.New("--root must not be /: it names a directory for container states")
	}
	g.root = root
	return nil
}

func (g *global) openLog() error {
	if g.debug {
		logrus.SetLevel(logrus.DebugLevel)
	}
	switch g.logFormat {
	case "", "text":
	case "json":
		logrus.SetFormatter(new(logrus.JSONFormatter))
	default:
		return fmt.Errorf("--log-format %q: it is text or json", g.logFormat)
	}
	if g.logFile == "" {
		return nil
	}
	f, err := os.OpenFile(g.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	logrus.SetOutput(f)
	return nil
}

// rootlessCgroups decides whether cgroups that we may not make are left out:
// "auto" means yes unless we are root in the host's user namespace.
func (g *global) rootlessCgroups() (bool, error) {
	switch g.rootless {
	case "", "auto":
	default:
		b, err := strconv.ParseBool(g.rootless)
		if err != nil {
			return false, fmt.Errorf("--rootless %q: it is true, false or auto", g.rootless)
		}
		return b, nil
	}
	return container.Rootless(), nil
}

func printVersion(c *cli.Context) {
	fmt.Fprintln(c.App.Writer, "psi-runtime version", version)
	if commit != "" {
		fmt.Fprintln(c.App.Writer, "commit:", commit)
	}
	fmt.Fprintln(c.App.Writer, "spec:", specs.Version)
	fmt.Fprintln(c.App.Writer, "go:", runtime.Version())
	if v := container.SeccompVersion(); v != "" {
		fmt.Fprintln(c.App.Writer, "libseccomp:", v)
	}
}
