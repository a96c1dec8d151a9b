package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/install"
)

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "make psi-runtime known to container engines",
		Description: "Shows the change to each engine's configuration as a diff and makes it, with a backup beside the file.\n" +
			"A second time there is nothing to do. The engine is not restarted.",
		Flags: append(engineFlags(),
			&cli.StringFlag{Name: "runtime", Usage: "program that engines are to call (default: this one)"}),
		Action: func(c *cli.Context) error { return configure(c, install.Install) },
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:   "uninstall",
		Usage:  "take out of the engines' configuration what install put there",
		Flags:  engineFlags(),
		Action: func(c *cli.Context) error { return configure(c, install.Uninstall) },
	}
}

func engineFlags() []cli.Flag {
	var flags []cli.Flag
	for _, e := range install.Engines() {
		flags = append(flags, &cli.BoolFlag{Name: string(e), Usage: "change the configuration of " + string(e)})
	}
	return append(flags,
		&cli.StringFlag{Name: "file", Usage: "configuration file, if it is not the engine's usual one"},
		&cli.BoolFlag{Name: "dry-run", Usage: "only show the diff"})
}

// configure plans the change of every named engine before it makes the first one.
func configure(c *cli.Context, plan func(install.Options) (install.Change, error)) error {
	if err := needArgs(c, 0, 0); err != nil {
		return err
	}
	runtime, err := installedRuntime(c.String("runtime"))
	if err != nil {
		return err
	}
	var changes []install.Change
	for _, e := range install.Engines() {
		if !c.Bool(string(e)) {
			continue
		}
		change, err := plan(install.Options{Engine: e, Path: c.String("file"), Runtime: runtime})
		if err != nil {
			return fmt.Errorf("%s: %w", e, err)
		}
		changes = append(changes, change)
	}
	switch {
	case len(changes) == 0:
		return fmt.Errorf("no engine is named: say one or more of --containerd, --podman, --crio, --docker: see psi-runtime %s --help", c.Command.Name)
	case len(changes) > 1 && c.IsSet("file"):
		return errors.New("--file belongs to one engine, and several are named")
	}
	for _, change := range changes {
		if err := carryOut(c.App.Writer, change, c.Bool("dry-run")); err != nil {
			return err
		}
	}
	return nil
}

// carryOut shows one change and makes it.
func carryOut(out io.Writer, change install.Change, dryRun bool) error {
	if change.Empty() {
		fmt.Fprintf(out, "%s: nothing to do\n", change.Path)
		return nil
	}
	fmt.Fprint(out, change.Diff())
	if dryRun {
		return nil
	}
	if err := change.Apply(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is changed; to make the engine see it: %s\n", change.Path, change.Restart)
	return nil
}

// installedRuntime is the program that engines call: the one named, or this one.
func installedRuntime(named string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	return filepath.EvalSymlinks(path)
}
