package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

// farewell is how long the last events of a container that has ended may take to come.
const farewell = 5 * time.Second

type eventsOptions struct {
	interval time.Duration
	once     bool
}

func eventsCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "events",
		Usage:       "print a container's statistics and events, or a guest's events, as JSON lines",
		ArgsUsage:   "ID",
		Description: "Ends when the container does. Of a container with a policy, and of a supervisor's guest (psi-…), what happened to it\nis printed too (the last events of before first), DENIED among it: such a line is what `psi-runtime policy explain POLICY -` reads.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Value: 5 * time.Second, Usage: "time between statistics"},
			&cli.BoolFlag{Name: "stats", Usage: "print the statistics once"},
		},
		Action: eventsOf(g),
	}
}

func events(c *container.Container, o eventsOptions, w io.Writer) error {
	if o.interval <= 0 {
		return errors.New("duration interval must be greater than 0")
	}
	status, err := c.Status()
	if err != nil {
		return err
	}
	if status == "stopped" {
		return fmt.Errorf("container with id %s is not running", c.ID())
	}
	out := json.NewEncoder(w)
	if o.once {
		return printStats(c, out)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ooms, err := c.OOMEvents(ctx)
	if err != nil {
		return err
	}
	told, err := toldOf(c)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.WaitEnd()
	}()
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for {
		select {
		case line, ok := <-told:
			if !ok {
				told = nil
				continue
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		case _, ok := <-ooms:
			if !ok {
				ooms = nil
				continue
			}
			if err := out.Encode(c.OOMEvent()); err != nil {
				return err
			}
		case <-tick.C:
			if err := printStats(c, out); err != nil {
				return err
			}
		case <-ended:
			return lastTold(told, w)
		}
	}
}

func printStats(c *container.Container, out *json.Encoder) error {
	stats, err := c.StatsEvent()
	if err != nil {
		return err
	}
	return out.Encode(stats)
}
