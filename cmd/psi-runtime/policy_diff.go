package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/policy"
)

func policyDiffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "print what policy B permits that policy A does not", ArgsUsage: "A B",
		Description: "The policies are compared by what they mean: paths by automata, endpoints by addresses. " +
			"The exit code is 0 when B permits nothing more, 1 when it does, 2 when they cannot be compared.",
		Flags: []cli.Flag{jsonFlag(),
			&cli.StringSliceFlag{Name: "var", Usage: "`NAME=VALUE` of a variable; a policy takes those that it uses"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 2, 2); err != nil {
				return trouble(err)
			}
			a, b, err := bothPolicies(c)
			if err != nil {
				return trouble(err)
			}
			found, err := policy.Compare(a, b)
			if err != nil {
				return trouble(err)
			}
			if c.Bool("json") {
				if found == nil {
					found = []policy.Difference{}
				}
				if err := printJSON(c, map[string]any{"permits": found}); err != nil {
					return trouble(err)
				}
			} else {
				for _, d := range found {
					d.Example, d.Rule = oneLine(d.Example), oneLine(d.Rule)
					fmt.Fprintln(c.App.Writer, d)
				}
			}
			if len(found) > 0 {
				return exitStatus(codeFailure)
			}
			return nil
		},
	}
}

// bothPolicies resolves the two policies, each with the variables that it uses.
func bothPolicies(c *cli.Context) (a, b policy.Policy, err error) {
	values, err := parseVariables(c.StringSlice("var"))
	if err != nil {
		return a, b, err
	}
	used := make(map[string]bool)
	var both [2]policy.Policy
	for i, name := range c.Args().Slice() {
		data, source, sandbox, err := openPolicy(c, name)
		if err != nil {
			return a, b, err
		}
		document, errs := policy.ReadDocument(data, source)
		if len(errs) > 0 {
			return a, b, shown(errs[0])
		}
		needed, err := document.Variables(sandbox)
		if err != nil {
			return a, b, err
		}
		own := make(map[string]string)
		for _, variable := range needed {
			used[variable] = true
			if value, given := values[variable]; given {
				own[variable] = value
			}
		}
		effective, err := document.Resolve(policy.Choice{Sandbox: sandbox, Variables: own})
		if err != nil {
			return a, b, shown(err)
		}
		both[i] = effective.Policy
	}
	for name := range values {
		if !used[name] {
			return a, b, fmt.Errorf("--var %s: neither policy uses it: remove it", name)
		}
	}
	return both[0], both[1], nil
}
