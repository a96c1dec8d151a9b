package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

type bundleOptions struct {
	policy string // name, or path of a file
	rootfs string // "" is looked for
	script string // "" is the agent
	args   []string
	output string
}

func bundleCommand() *cli.Command {
	return &cli.Command{
		Name:      "bundle",
		Usage:     "compile a policy into an OCI bundle",
		ArgsUsage: "[ARGUMENT of the script]...",
		Description: "The bundle runs with psi-runtime run, and with any other OCI runtime, which\n" +
			"then enforces all of the policy but its network and clock rules.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "policy", Aliases: []string{"p"}, Value: "defaults", Usage: "`NAME` of a policy (an unknown one lists them), or a file (with a / or ending in .yml, .yaml or .json)"},
			&cli.StringFlag{Name: "rootfs", Usage: "root made by psi-runtime rootfs build (default: $PSI_ROOTFS, build/rootfs of the checkout, " + installedRootfs + ")"},
			&cli.StringFlag{Name: "entry", Value: "agent", Usage: "`agent`, or a Python script to run"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Required: true, Usage: "directory to make"},
		},
		Action: func(c *cli.Context) error {
			o := bundleOptions{policy: c.String("policy"), rootfs: c.String("rootfs"), script: c.String("entry"), args: c.Args().Slice(), output: c.String("output")}
			if o.script == "agent" {
				o.script = ""
			}
			if o.script == "" && len(o.args) > 0 {
				return fmt.Errorf("the agent takes no arguments: %q (name a script with --entry)", o.args)
			}
			return makeBundle(o, c.App.Writer)
		},
	}
}

func makeBundle(o bundleOptions, w io.Writer) error {
	p, err := policy.Load(o.policy)
	if err != nil {
		return err
	}
	root, err := findRootfs(o.rootfs)
	if err != nil {
		return err
	}
	info, err := bundle.Inspect(root)
	if err != nil {
		return err
	}
	view, err := bundle.PlanView(p)
	if err != nil {
		return err
	}
	entry := bundle.Entry{Script: o.script, Args: o.args}
	spec, err := bundle.Compile(p, info, view, entry)
	if err != nil {
		return err
	}
	if err := bundle.Write(o.output, spec, info, view, entry); err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n  policy  %s\n  rootfs  %s\n", o.output, p.Digest(), info.Digest)
	for _, note := range view.Notes {
		fmt.Fprintln(w, " ", note)
	}
	return nil
}

// installedRootfs is where `make install` puts the root file system.
const installedRootfs = "/var/lib/psi/rootfs"

// findRootfs is the given root, or the first there is of the usual places.
func findRootfs(given string) (string, error) {
	if given == "" {
		given = os.Getenv("PSI_ROOTFS")
	}
	if given != "" {
		return given, nil
	}
	places := []string{installedRootfs}
	if exe, err := os.Executable(); err == nil {
		places = append([]string{filepath.Join(filepath.Dir(exe), "../build/rootfs")}, places...)
	}
	for _, place := range places {
		_, err := os.Stat(filepath.Join(place, "usr/lib/psi/rootfs.json"))
		if err == nil {
			return place, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("looking for a root file system: %w", err)
		}
	}
	return "", fmt.Errorf("no root file system in %s: run `psi-runtime rootfs build -o %s`, or name one with --rootfs or PSI_ROOTFS", strings.Join(places, ", "), installedRootfs)
}
