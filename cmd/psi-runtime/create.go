package main

import (
	"errors"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func createCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "create",
		Usage:       "create a container, which waits for start",
		ArgsUsage:   "ID",
		Description: "The container gets the caller's stdin, stdout and stderr, or a terminal of its own\nwhose master end goes to --console-socket.",
		Flags:       launchFlags(),
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 1); err != nil {
				return err
			}
			o := parseLaunch(c)
			spec, bundle, err := loadSpec(o.bundle)
			if err != nil {
				return err
			}
			return create(g, &o, spec, bundle)
		},
	}
}

func create(g *global, o *launchOptions, spec *specs.Spec, bundle string) error {
	ctr, err := createDetached(g, o, spec, bundle)
	if err != nil {
		return err
	}
	return ctr.Close()
}

func runDetached(g *global, o *runOptions, spec *specs.Spec, bundle string) (err error) {
	c, err := createDetached(g, &o.launchOptions, spec, bundle)
	if err != nil {
		return err
	}
	notify, err := o.start(c)
	if err != nil {
		return errors.Join(err, c.Delete(true))
	}
	notify.forward()
	return c.Close()
}

// createDetached makes a container that outlives us, with the process that attends
// it if its policy needs one.
func createDetached(g *global, o *launchOptions, spec *specs.Spec, bundle string) (_ *container.Container, err error) {
	terminal := spec.Process != nil && spec.Process.Terminal
	if err := checkTerminal(terminal, true, o.consoleSocket); err != nil {
		return nil, err
	}
	guard, err := guardOf(g, spec, bundle)
	if err != nil {
		return nil, err
	}
	opts, err := o.createOptions(g, spec, bundle)
	if err != nil {
		return nil, err
	}
	guard.prepare(&opts)
	for _, s := range []struct {
		path string
		file **os.File
	}{{o.consoleSocket, &opts.ConsoleSocket}, {o.pidfdSocket, &opts.PIDFDSocket}} {
		if s.path == "" {
			continue
		}
		if *s.file, err = dialSocket(s.path); err != nil {
			return nil, err
		}
		defer (*s.file).Close()
	}
	if !terminal {
		opts.Stdin, opts.Stdout, opts.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	c, err := o.make(opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Delete(true))
		}
	}()
	if err := guard.attendDetached(g, c); err != nil {
		return nil, err
	}
	return c, c.Detach()
}
