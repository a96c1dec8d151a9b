package main

import (
	"github.com/urfave/cli/v2"
)

func restoreCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "restore",
		Usage:       "make a container of a bundle and the images of a checkpoint",
		ArgsUsage:   "ID",
		Description: "criu does it, which must be installed. Signals and the exit code are as with run.",
		Flags: append(imageFlags(),
			&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "directory of the bundle (default: the working directory)"},
			&cli.StringFlag{Name: "console-socket", Usage: "unix socket that gets the master end of the terminal"},
			&cli.StringFlag{Name: "pid-file", Usage: "file to write the process id to"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the container runs"},
			&cli.BoolFlag{Name: "no-subreaper", Usage: "do not adopt processes that the container leaves"},
			&cli.BoolFlag{Name: "no-pivot", Usage: "move the root mount instead of pivoting, for roots on a ramdisk"},
			&cli.StringFlag{Name: "lsm-profile", Usage: "LSM profile for the processes, as `TYPE:NAME`"},
			&cli.StringFlag{Name: "lsm-mount-context", Usage: "LSM context for the mounts"},
		),
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 1, 1); err != nil {
				return err
			}
			launch := parseLaunch(c)
			var err error
			if launch.images, err = parseImages(c); err != nil {
				return err
			}
			return run(g, &runOptions{
				launchOptions: launch,
				detach:        c.Bool("detach"),
				noSubreaper:   c.Bool("no-subreaper"),
			})
		},
	}
}
