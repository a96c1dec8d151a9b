package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/policy"
)

func policyShowCommand() *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "print what a policy comes to, with the place of every value", ArgsUsage: "NAME|FILE[#SANDBOX]",
		Flags: []cli.Flag{varFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "canonical", Usage: "print the canonical document"},
			&cli.BoolFlag{Name: "text", Usage: "print the document as it is written"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 1, 1); err != nil {
				return err
			}
			if c.Bool("text") {
				data, _, _, err := openPolicy(c, c.Args().First())
				if err == nil {
					_, err = c.App.Writer.Write(data)
				}
				return err
			}
			e, err := effectivePolicy(c, c.Args().First())
			if err != nil {
				return err
			}
			return showPolicy(c, e)
		},
	}
}

func showPolicy(c *cli.Context, e policy.Effective) error {
	switch {
	case c.Bool("canonical"):
		fmt.Fprintf(c.App.Writer, "%s\n", e.Policy.Canonical())
		return nil
	case c.Bool("json"):
		type value struct {
			Key    string `json:"key"`
			Value  string `json:"value"`
			From   string `json:"from"`
			Source string `json:"source,omitempty"`
			Line   int    `json:"line,omitempty"`
			Column int    `json:"column,omitempty"`
		}
		values := []value{}
		for _, o := range e.Origins {
			values = append(values, value(o))
		}
		return printJSON(c, map[string]any{"sandbox": e.Sandbox, "digest": e.Policy.Digest(), "values": values})
	}
	fmt.Fprintln(c.App.Writer, "digest", e.Policy.Digest())
	table := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	last := ""
	for _, o := range foldImports(e.Origins) {
		key := o.Key
		if key == last {
			key = ""
		}
		last = o.Key
		place := o.From
		if o.Line > 0 {
			place = fmt.Sprintf("%s, %s:%d:%d", o.From, o.Source, o.Line, o.Column)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", key, oneLine(o.Value), place)
	}
	return table.Flush()
}

// foldImports puts modules from one place into few lines: there may be hundreds.
func foldImports(origins []policy.Origin) []policy.Origin {
	const width = 60
	var out []policy.Origin
	for _, o := range origins {
		if end := len(out) - 1; o.Key == "imports" && end >= 0 && out[end].Key == o.Key && out[end].From == o.From && len(out[end].Value)+len(o.Value) < width {
			out[end].Value += ", " + o.Value
			continue
		}
		out = append(out, o)
	}
	return out
}

// oneLine keeps what a policy holds from moving the cursor of a terminal.
func oneLine(text string) string {
	quoted := fmt.Sprintf("%q", text)
	if quoted == `"`+text+`"` || !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) {
		return text
	}
	return quoted
}
