package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

func policyApplyCommand() *cli.Command {
	return &cli.Command{
		Name: "apply", Usage: "put another policy into force in a running guest", ArgsUsage: "GUEST NAME|FILE[#SANDBOX]|-",
		Description: "GUEST is the id of a guest of a supervisor (psi-…). All of the policy comes into force or, with an error, nothing.\n" +
			"With --dry-run nothing changes, and a table shows what would: + for what the guest could do then, - for what it could no more.",
		Flags: []cli.Flag{varFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only show the difference"},
			&cli.PathFlag{Name: "token-file", Usage: "`FILE` with the token, if the guest's client protects its guests with one"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 2, 2); err != nil {
				return trouble(err)
			}
			return applyPolicy(c, c.Args().First(), c.Args().Get(1))
		},
	}
}

// applied is the answer to a dry run.
type applied struct {
	Changes []struct {
		Guest   string              `json:"guest"`
		Digest  string              `json:"policy_digest"`
		Permits []policy.Difference `json:"permits"`
		Forbids []policy.Difference `json:"forbids"`
	} `json:"changes"`
}

func applyPolicy(c *cli.Context, guest, name string) error {
	effective, err := effectivePolicy(c, name)
	if err != nil {
		return trouble(err)
	}
	fields := map[string]any{
		"guest": guest, "policy_text": string(effective.Policy.Canonical()), "policy_source": name, "dry_run": c.Bool("dry-run"),
	}
	if file := c.Path("token-file"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return trouble(fmt.Errorf("reading the token: %w", err))
		}
		fields["token"] = strings.TrimRight(string(token), "\n")
	}
	tool, err := control.FindGuest(guest, "psi-runtime "+version)
	if err != nil {
		return trouble(fmt.Errorf("applying a policy to guest %q: %w", guest, wayToGuest(err)))
	}
	defer tool.Close()
	var answer applied
	if err := tool.Ask("reload", fields, &answer); err != nil {
		return err
	}
	switch {
	case !c.Bool("dry-run"):
		return nil
	case len(answer.Changes) != 1:
		return trouble(errors.New("the supervisor's answer to a dry run is not about the one guest"))
	case c.Bool("json"):
		return printJSON(c, answer.Changes[0])
	}
	out := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	for _, d := range answer.Changes[0].Permits {
		fmt.Fprintf(out, "+ %s\t%s\t%s\t%s\n", d.Key, d.Permits, oneLine(d.Example), oneLine(d.Rule))
	}
	for _, d := range answer.Changes[0].Forbids {
		fmt.Fprintf(out, "- %s\t%s\t%s\t%s\n", d.Key, d.Permits, oneLine(d.Example), oneLine(d.Rule))
	}
	return out.Flush()
}

// wayToGuest says how to name a guest.
func wayToGuest(err error) error {
	if errors.Is(err, control.ErrNoGuest) {
		return fmt.Errorf("%w: the id is what Sandbox.id says, psi-…; only guests of a supervisor can be asked about, by root", err)
	}
	return err
}
