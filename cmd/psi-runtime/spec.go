package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

type specOptions struct {
	bundle   string
	rootless bool
}

func specCommand() *cli.Command {
	return &cli.Command{
		Name:        "spec",
		Usage:       "write an example config.json to start from",
		Description: "The bundle also needs a root filesystem, in its directory rootfs. For a bundle made\nfrom a policy see psi-runtime bundle.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "directory of the bundle (default: the working directory)"},
			&cli.BoolFlag{Name: "rootless", Usage: "one that the calling user can run without privileges"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 0, 0); err != nil {
				return err
			}
			return writeSpec(specOptions{bundle: c.String("bundle"), rootless: c.Bool("rootless")})
		},
	}
}

func writeSpec(o specOptions) error {
	path := filepath.Join(o.bundle, specFile)
	data, err := json.MarshalIndent(container.ExampleSpec(o.rootless), "", "\t")
	if err != nil {
		return fmt.Errorf("encoding the example: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("file %s exists: remove it first", path)
	}
	if err != nil {
		return fmt.Errorf("writing the example: %w", err)
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
