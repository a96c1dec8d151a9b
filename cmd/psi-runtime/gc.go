package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:        "gc",
		Usage:       "remove what crashed processes left",
		Description: "Containers of living processes, and those that create and run -d made, stay.",
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 0, 0); err != nil {
				return err
			}
			report, err := container.GC("")
			for _, id := range report.Containers {
				fmt.Fprintln(c.App.Writer, "container", id)
			}
			for _, path := range report.Strays {
				fmt.Fprintln(c.App.Writer, "stray", path)
			}
			return err
		},
	}
}
