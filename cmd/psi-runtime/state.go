package main

import (
	"encoding/json"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func stateCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "state",
		Usage:     "print the state of a container as JSON",
		ArgsUsage: "ID",
		Action: withContainer(g, func(c *container.Container, ctx *cli.Context) error {
			state, err := c.State()
			if err != nil {
				return err
			}
			shown, err := withProtection(state)
			if err != nil {
				return err
			}
			shown.untold(c.StateDir())
			enc := json.NewEncoder(ctx.App.Writer)
			enc.SetIndent("", "  ")
			return enc.Encode(shown)
		}),
	}
}
