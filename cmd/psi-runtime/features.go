package main

import (
	"encoding/json"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func featuresCommand() *cli.Command {
	return &cli.Command{
		Name:  "features",
		Usage: "print what this build can do, as the OCI features document",
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 0, 0); err != nil {
				return err
			}
			f := container.Features()
			f.Annotations["io.psi.version"] = version
			if commit != "" {
				f.Annotations["io.psi.commit"] = commit
			}
			enc := json.NewEncoder(c.App.Writer)
			enc.SetIndent("", "    ")
			return enc.Encode(f)
		},
	}
}
