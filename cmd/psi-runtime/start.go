package main

import (
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func startCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "run the program of a created container",
		ArgsUsage: "ID",
		Action: withContainer(g, func(c *container.Container, _ *cli.Context) error {
			notify, err := start(c)
			notify.forward()
			return err
		}),
	}
}

// start starts a container and returns the socket by which its program says that
// it is ready, if it has one.
func start(c *container.Container) (*notifySocket, error) {
	notify, err := listenNotify(c)
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		notify.close()
		return nil, err
	}
	return notify, nil
}

// withContainer is the action of a command whose one argument is a container.
func withContainer(g *global, do func(*container.Container, *cli.Context) error) cli.ActionFunc {
	return withLoaded(func(id string) (*container.Container, error) { return container.Load(g.root, id) }, do)
}

// withLocked is withContainer for a command that a change of policy waits for. With shared,
// it excludes nobody else.
func withLocked(g *global, shared bool, do func(*container.Container, *cli.Context) error) cli.ActionFunc {
	return withLoaded(func(id string) (*container.Container, error) { return container.LoadLocked(g.root, id, shared) }, do)
}

func withLoaded(load func(id string) (*container.Container, error), do func(*container.Container, *cli.Context) error) cli.ActionFunc {
	return func(ctx *cli.Context) error {
		if err := needArgs(ctx, 1, 1); err != nil {
			return err
		}
		c, err := load(ctx.Args().First())
		if err != nil {
			return err
		}
		defer c.Close()
		return do(c, ctx)
	}
}
