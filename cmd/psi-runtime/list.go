package main

import (
	"encoding/json"
	"fmt"
	"io"
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
	shown, policies := make([]shownState, 0, len(states)), false
	for _, s := range states {
		one, err := withProtection(s)
		if err != nil {
			logrus.Warnf("container %s: %v", s.ID, err)
		}
		shown, policies = append(shown, one), policies || one.Psi != nil
	}
	w := c.App.Writer
	switch {
	case o.quiet:
		for _, s := range states {
			fmt.Fprintln(w, s.ID)
		}
		return nil
	case o.format == "json":
		return json.NewEncoder(w).Encode(shown)
	}
	return printTable(w, shown, policies)
}

// printTable prints runc's columns, and the policies' digests if there are any.
func printTable(w io.Writer, states []shownState, policies bool) error {
	table := tabwriter.NewWriter(w, 12, 1, 3, ' ', 0)
	line := func(policy string, columns ...any) {
		fmt.Fprintf(table, "%v\t%v\t%v\t%v\t%v\t%v", columns...)
		if policies {
			fmt.Fprint(table, "\t", policy)
		}
		fmt.Fprintln(table)
	}
	line("POLICY", "ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
	for _, s := range states {
		policy := "-"
		if s.Psi != nil {
			policy = s.Psi.Policy[:len("sha256:")+12]
		}
		line(policy, s.ID, s.PID, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return table.Flush()
}
