package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
	"github.com/psi-runtime/psi/pkg/policy"
)

func policyApplyCommand(g *global) *cli.Command {
	return &cli.Command{
		Name: "apply", Usage: "put another policy into force in a running guest or container", ArgsUsage: "ID NAME|FILE[#SANDBOX]|-",
		Description: "ID is that of a guest of a supervisor (psi-…), or of a container with a policy that podman, Docker, containerd\n" +
			"or psi-runtime itself runs; with --root (before the command) only containers below it are looked at.\n" +
			"All of the policy comes into force or, with an error, nothing.\n" +
			"With --dry-run nothing changes, and a table shows what would: + for what the guest could do then, - for what it could no more.",
		Flags: []cli.Flag{varFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "only show the difference"},
			&cli.PathFlag{Name: "token-file", Usage: "`FILE` with the token, if the guest's client protects its guests with one"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 2, 2); err != nil {
				return trouble(err)
			}
			return applyPolicy(g, c, c.Args().First(), c.Args().Get(1))
		},
	}
}

// applied is the answer to a dry run.
type applied struct {
	Changes []policyChange `json:"changes"`
}

type policyChange struct {
	Guest   string              `json:"guest"`
	Digest  string              `json:"policy_digest"`
	Permits []policy.Difference `json:"permits"`
	Forbids []policy.Difference `json:"forbids"`
}

func applyPolicy(g *global, c *cli.Context, id, name string) error {
	effective, err := effectivePolicy(c, name)
	if err != nil {
		return trouble(err)
	}
	change := control.PolicyChange{Text: string(effective.Policy.Canonical()), Source: name, DryRun: c.Bool("dry-run")}
	var answer applied
	err = control.ErrNoGuest
	if g.root == "" {
		err = askSupervisor(c, id, change, &answer)
	}
	if errors.Is(err, control.ErrNoGuest) {
		err = askAttendant(g, c, id, change, &answer)
	}
	if err != nil {
		return err
	}
	switch {
	case !c.Bool("dry-run"):
		return nil
	case len(answer.Changes) != 1:
		return trouble(errors.New("the answer to a dry run is not about the one guest"))
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

// askSupervisor asks the supervisor that runs the guest.
func askSupervisor(c *cli.Context, guest string, change control.PolicyChange, answer *applied) error {
	fields := map[string]any{"guest": guest, "policy_text": change.Text, "policy_source": change.Source, "dry_run": change.DryRun}
	if file := c.Path("token-file"); file != "" {
		token, err := os.ReadFile(file)
		if err != nil {
			return trouble(fmt.Errorf("reading the token: %w", err))
		}
		fields["token"] = strings.TrimRight(string(token), "\n")
	}
	tool, err := control.FindGuest(guest, "psi-runtime "+version)
	if err != nil {
		return trouble(fmt.Errorf("applying a policy to guest %q: %w", guest, err))
	}
	defer tool.Close()
	return tool.Ask("reload", fields, answer)
}

// askAttendant asks whoever attends a container that runs without a supervisor.
func askAttendant(g *global, c *cli.Context, id string, change control.PolicyChange, answer *applied) error {
	dir, err := attendedContainer(g, id)
	if err == nil && c.IsSet("token-file") {
		err = errors.New("--token-file: it has no supervisor, and so no token: leave that out")
	}
	if err == nil {
		var into any
		if change.DryRun {
			into = answer
		}
		err = control.AskForPolicy(dir, change, into)
	}
	var refused *control.Refusal
	switch {
	case err == nil, errors.As(err, &refused):
		return err
	case errors.Is(err, control.ErrUnattended):
		err = fmt.Errorf("%w: what holds it stays as it was, and nobody can change that: end it (psi-runtime --root %s delete --force %s) and make it again", err, filepath.Dir(dir), id)
	}
	return trouble(fmt.Errorf("applying a policy to %q: %w", id, err))
}

// attendedContainer finds the state directory of a container that has a policy.
func attendedContainer(g *global, id string) (found string, err error) {
	roots := []string{g.root}
	if g.root == "" {
		dirs, err := container.StateDirs(id)
		if err != nil {
			return "", err
		}
		for roots = nil; len(dirs) > len(roots); {
			roots = append(roots, filepath.Dir(dirs[len(roots)]))
		}
	}
	for _, root := range roots {
		c, err := container.Load(root, id)
		if errors.Is(err, container.ErrNotExist) || errors.Is(err, container.ErrInvalidID) {
			continue
		}
		if err != nil {
			return "", err
		}
		dir := c.StateDir()
		err = errors.Join(mayChange(c), c.Close())
		switch {
		case err != nil:
			return "", err
		case found != "":
			return "", fmt.Errorf("containers in %s and %s have this id: say which by --root, before the command", found, dir)
		}
		found = dir
	}
	if found == "" {
		return "", errors.New("no supervisor of this host runs such a guest for root, and there is no such container: the id is what Sandbox.id says, psi-…, or what psi-runtime list or the engine says")
	}
	return found, nil
}

// mayChange says why a container cannot be given a policy.
func mayChange(c *container.Container) error {
	record, err := engine.ReadRecord(c.Annotations())
	if err != nil {
		return err
	}
	if record == nil {
		return errors.New("the container was made without a policy, and what holds one is put on when it is made: make it again with one")
	}
	status, err := c.Status()
	if err == nil && status == "stopped" {
		return errors.New("the container has ended")
	}
	return err
}
