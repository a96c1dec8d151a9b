package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

type runOptions struct {
	launchOptions
	detach      bool
	keep        bool
	noSubreaper bool
}

func runCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "create a container, start it, and return its exit code",
		ArgsUsage: "ID | BUNDLE/",
		Description: "An argument with a / in it is the bundle's directory; the id is then a new one.\n" +
			"Signals are forwarded to the container's first process. Its exit code is\n" +
			"psi-runtime's; 128 + N if signal N ended it; 1 if the container could not be run.",
		Flags: append(launchFlags(),
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the container runs"},
			&cli.BoolFlag{Name: "keep", Usage: "do not delete the container when it has ended"},
			&cli.BoolFlag{Name: "no-subreaper", Usage: "do not adopt processes that the container leaves"},
		),
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 1); err != nil {
				return err
			}
			launch, err := parseLaunch(c).orBundle()
			if err != nil {
				return err
			}
			return run(g, &runOptions{
				launchOptions: launch,
				detach:        c.Bool("detach"),
				keep:          c.Bool("keep"),
				noSubreaper:   c.Bool("no-subreaper"),
			})
		},
	}
}

func run(g *global, o *runOptions) error {
	spec, bundle, err := loadSpec(o.bundle)
	if err != nil {
		return err
	}
	terminal := spec.Process != nil && spec.Process.Terminal
	if err := checkTerminal(terminal, o.detach, o.consoleSocket); err != nil {
		return err
	}
	if o.detach {
		return runDetached(g, o, spec, bundle)
	}
	guard, err := guardOf(g, spec, bundle)
	if err != nil {
		return err
	}
	opts, err := o.createOptions(g, spec, bundle)
	if err != nil {
		return err
	}
	guard.prepare(&opts)
	guard.load()
	if !o.noSubreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return errors.New("becoming the reaper of the container's orphans: " + err.Error())
		}
	}
	signals := catchSignals()
	status, err := runForeground(&opts, guard, signals, terminal, o)
	if err != nil {
		return err
	}
	return exitStatus(status)
}

// runForeground creates, starts, waits for and deletes the container.
func runForeground(opts *container.CreateOptions, guard *guard, signals *signals, terminal bool, o *runOptions) (_ int, err error) {
	defer func() { err = errors.Join(err, guard.unload()) }()
	streams, err := openStreams(terminal)
	if err != nil {
		return 0, err
	}
	defer streams.restore()
	opts.Stdin, opts.Stdout, opts.Stderr, opts.ConsoleSocket = streams.files()
	if o.pidfdSocket != "" {
		if opts.PIDFDSocket, err = dialSocket(o.pidfdSocket); err != nil {
			return 0, err
		}
		defer opts.PIDFDSocket.Close()
	}
	attendance := &attendance{}
	opts.OnInit = func(c *container.Container) (err error) {
		attendance, err = guard.attend(c)
		return err
	}
	c, err := o.make(*opts)
	if err != nil {
		code, err := attendance.failed(err)
		return code, errors.Join(err, attendance.end())
	}
	defer func() {
		if err != nil || !o.keep {
			err = errors.Join(err, c.Delete(true))
		} else {
			err = c.Detach()
		}
	}()
	defer func() { err = errors.Join(err, attendance.end()) }()
	if err := streams.started(); err != nil {
		return 0, err
	}
	signals.ready()
	notify, err := o.start(c)
	if err != nil {
		return attendance.failed(err)
	}
	go notify.forward()
	status := signals.forward(c, streams)
	streams.drain()
	return status, nil
}

// orBundle takes an argument with a / in it, which no id has, as the bundle's
// directory, and gives the container an id of its own.
func (o launchOptions) orBundle() (launchOptions, error) {
	if !strings.Contains(o.id, "/") {
		return o, nil
	}
	if o.bundle != "" {
		return o, fmt.Errorf("bundle given twice, as %q and by --bundle %q: give it once, beside an id or without one", o.id, o.bundle)
	}
	o.bundle, o.id = o.id, "psi-"+strings.ToLower(rand.Text()[:16])
	return o, nil
}
