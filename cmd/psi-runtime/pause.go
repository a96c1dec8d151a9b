package main

import (
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func pauseCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "pause",
		Usage:       "stop every process of a container where it is",
		ArgsUsage:   "ID",
		Description: "The processes keep what they have and get no cpu time until resume.",
		Action: withLocked(g, true, func(c *container.Container, _ *cli.Context) error {
			return c.Pause()
		}),
	}
}

func resumeCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "resume",
		Usage:     "let a paused container go on",
		ArgsUsage: "ID",
		Action: withLocked(g, true, func(c *container.Container, _ *cli.Context) error {
			return c.Resume()
		}),
	}
}
