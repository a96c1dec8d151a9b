package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

type killOptions struct {
	id     string
	signal string // name with or without SIG, or number; "" is SIGTERM
	all    bool
}

func killCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "kill",
		Usage:       "send a signal to a container",
		ArgsUsage:   "ID [SIGNAL]",
		Description: "SIGNAL is a name (TERM, SIGTERM) or a number; the default is TERM. 0 only checks\nthat the container's first process is there.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "send it to every process of the container"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 2); err != nil {
				return err
			}
			return kill(g, killOptions{id: c.Args().First(), signal: c.Args().Get(1), all: c.Bool("all")})
		},
	}
}

func kill(g *global, o killOptions) error {
	sig, err := parseSignal(o.signal)
	if err != nil {
		return err
	}
	c, err := container.Load(g.root, o.id)
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Kill(sig, o.all)
	if o.all && errors.Is(err, container.ErrNotRunning) {
		return nil // engines send --all to make sure, and count on success
	}
	return err
}

func parseSignal(s string) (unix.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q: numbers go from 0 to 64", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q: give a name such as TERM or a number", s)
}
