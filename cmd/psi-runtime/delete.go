package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

type deleteOptions struct {
	id    string
	force bool
}

func deleteCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "delete",
		Usage:     "remove a stopped or created container",
		ArgsUsage: "ID",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it first; succeed if there is none"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 1); err != nil {
				return err
			}
			return remove(g, deleteOptions{id: c.Args().First(), force: c.Bool("force")})
		},
	}
}

func remove(g *global, o deleteOptions) error {
	c, err := container.Load(g.root, o.id)
	if errors.Is(err, container.ErrNotExist) {
		// What a killed `create` left has a name and no state.
		purgeErr := container.Purge(g.root, o.id)
		switch {
		case o.force && (purgeErr == nil || errors.Is(purgeErr, container.ErrNotExist)):
			return nil
		case purgeErr != nil && !errors.Is(purgeErr, container.ErrNotExist):
			return purgeErr
		}
		return err
	}
	if err != nil {
		return err
	}
	return c.Delete(o.force)
}
