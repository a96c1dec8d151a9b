package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

type listOptions struct {
	format string // table or json
	quiet  bool
}

func listCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the containers below --root",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "table or json"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print ids only"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 0, 0); err != nil {
				return err
			}
			return list(g, listOptions{format: c.String("format"), quiet: c.Bool("quiet")}, c)
		},
	}
}

func list(g *global, o listOptions, c *cli.Context) error {
	if o.format != "table" && o.format != "json" {
		return fmt.Errorf("--format %q: it is table or json", o.format)
	}
	states, err := container.List(g.root)
	if err != nil && states == nil {
		return err
	}
	if err != nil {
		logrus.Warn(err)
	}
	w := c.App.Writer
	switch {
	case o.quiet:
		for _, s := range states {
			fmt.Fprintln(w, s.ID)
		}
		return nil
	case o.format == "json":
		return json.NewEncoder(w).Encode(states)
	}
	table := tabwriter.NewWriter(w, 12, 1, 3, ' ', 0)
	fmt.Fprint(table, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, s := range states {
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\n",
			s.ID, s.PID, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return table.Flush()
}
