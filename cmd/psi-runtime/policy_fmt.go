package main

import (
	"bytes"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/policy"
)

func policyFmtCommand() *cli.Command {
	return &cli.Command{
		Name: "fmt", Usage: "rewrite policies in the usual form, comments kept", ArgsUsage: "FILE…",
		Description: "Prints the names of the files that were changed. A file of - is read from stdin and printed.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "check", Usage: "change nothing; the exit code is 1 when a file would be changed"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 1, -1); err != nil {
				return trouble(err)
			}
			changed := false
			for _, name := range c.Args().Slice() {
				differs, err := formatFile(c, name)
				if err != nil {
					return trouble(shown(err))
				}
				changed = changed || differs
			}
			if changed && c.Bool("check") {
				return exitStatus(codeFailure)
			}
			return nil
		},
	}
}

// formatFile formats one file and reports whether it was in another form.
func formatFile(c *cli.Context, name string) (differs bool, err error) {
	if name != "-" && !policy.IsPath(name) {
		return false, fmt.Errorf("%q is the name of a policy, not a file: give a path such as ./%s.yml", name, name)
	}
	data, source, sandbox, err := openPolicy(c, name)
	if err != nil {
		return false, err
	}
	if sandbox != "" {
		return false, fmt.Errorf("%s: a whole file is formatted: give %s", name, source)
	}
	out, err := policy.Format(data, source)
	if err != nil {
		return false, err
	}
	differs = !bytes.Equal(out, data)
	switch {
	case name == "-" && !c.Bool("check"):
		_, err = c.App.Writer.Write(out)
	case differs:
		fmt.Fprintln(c.App.Writer, source)
		if !c.Bool("check") {
			err = writeFile(source, out)
		}
	}
	if err != nil {
		err = fmt.Errorf("formatting %s: %w", source, err)
	}
	return differs, err
}
