package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/signal"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/rootfs"
)

func rootfsCommand() *cli.Command {
	return &cli.Command{
		Name:  "rootfs",
		Usage: "make root file systems for guests",
		Subcommands: []*cli.Command{{
			Name:         "build",
			Usage:        "make a minimal Python root file system",
			OnUsageError: usageError,
			Description:  "The same input gives the same digest. --debug tells the steps.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "python", Value: "/usr/bin/python3", Usage: "interpreter to pack (CPython 3.9 to 3.14)"},
				&cli.StringSliceFlag{Name: "site-packages", Usage: "directory of packages to pack, with the libraries they need (repeatable)"},
				&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Required: true, Usage: "path to make"},
				&cli.StringFlag{Name: "format", Value: "dir", Usage: "dir, tar or oci (an image that podman load and ctr image import take)"},
				&cli.BoolFlag{Name: "json", Usage: "print the report as JSON"},
			},
			Action: func(c *cli.Context) error {
				if err := needArgs(c, 0, 0); err != nil {
					return err
				}
				return buildRootfs(c, rootfs.Options{
					Python: c.String("python"), SitePackages: c.StringSlice("site-packages"),
					Output: c.String("output"), Format: c.String("format"),
					Progress: func(step string) { logrus.Debug(step) },
				}, c.Bool("json"))
			},
		}},
	}
}

func buildRootfs(c *cli.Context, o rootfs.Options, asJSON bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	report, err := rootfs.Build(ctx, o)
	if err != nil {
		return err
	}
	w := c.App.Writer
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	fmt.Fprintf(w, "%s\n  python  %s\n  digest  %s\n  files   %d\n  size    %.1f MB\n",
		report.Path, report.Python, report.Digest, report.Files, float64(report.Size)/1e6)
	for _, thing := range report.LeftOut {
		logrus.Debug("left out: ", thing)
	}
	return nil
}
