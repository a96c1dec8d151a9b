package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

type psOptions struct {
	id     string
	format string   // table or json
	args   []string // of ps(1)
}

func psCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "ps",
		Usage:       "show the processes of a container",
		ArgsUsage:   "ID [arguments of ps]",
		Description: "The table is that of ps(1) with the given arguments (default -ef), reduced to\nthe container's processes.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "table or json"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, -1); err != nil {
				return err
			}
			return ps(g, psOptions{id: c.Args().First(), format: c.String("format"), args: c.Args().Tail()}, c.App.Writer)
		},
	}
}

func ps(g *global, o psOptions, w io.Writer) error {
	c, err := container.Load(g.root, o.id)
	if err != nil {
		return err
	}
	defer c.Close()
	pids, err := c.PIDs()
	if err != nil {
		return err
	}
	switch o.format {
	case "json":
		return json.NewEncoder(w).Encode(pids)
	case "table":
		return psTable(w, pids, o.args)
	}
	return fmt.Errorf("--format %q: it is table or json", o.format)
}

func psTable(w io.Writer, pids []int, args []string) error {
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	out, err := exec.Command("ps", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running ps: %w: %s", err, out)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return fmt.Errorf("running ps %s: its table has no PID column", strings.Join(args, " "))
	}
	fmt.Fprintln(w, lines[0])
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		pid, err := strconv.Atoi(fields[column])
		if err != nil {
			return fmt.Errorf("running ps: reading %q: %w", line, err)
		}
		if slices.Contains(pids, pid) {
			fmt.Fprintln(w, line)
		}
	}
	return nil
}
