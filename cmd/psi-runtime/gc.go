package main

import (
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/enforce"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "remove what crashed processes left",
		Description: "Containers of living processes, and those that create and run -d made, stay.\n" +
			"The host's eBPF programs are removed when no guest is held by them any more, and nobody is about to start one.",
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
			for _, each := range report.Unseen {
				logrus.Warnf("container %s lives and is left alone, but its state below %s cannot be seen from here: call gc where it can, or end the container's processes first", each.ID, each.Root)
			}
			programs, programsErr := enforce.Collect()
			for _, path := range programs {
				fmt.Fprintln(c.App.Writer, "programs", path)
			}
			return errors.Join(err, programsErr)
		},
	}
}
