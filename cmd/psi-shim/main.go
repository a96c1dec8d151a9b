// Command psi-shim carries a guest's channel to whoever talks to the guest.
//
//	psi-shim serve    runs guests for the clients of this machine
//	psi-shim bridge   carries the channel of guests that an engine runs
package main

import (
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/supervisor"
)

// version is set by the linker.
var version = "0.1.0"

func main() {
	container.MaybeInit()
	supervisor.LockMainThread()
	log := logrus.StandardLogger()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	app := &cli.App{
		Name:            "psi-shim",
		Usage:           "run Python guests for the clients of this machine",
		Version:         version,
		HideHelpCommand: true,
		Commands:        []*cli.Command{serveCommand(log), bridgeCommand(log), superviseCommand(log), keepCommand()},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("unknown command %q: the commands are serve and bridge", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return err },
		ExitErrHandler: func(*cli.Context, error) {},
	}
	if err := app.Run(os.Args); err != nil {
		if code, ok := err.(cli.ExitCoder); ok && err.Error() == "" { //nolint:errorlint // made by serve, never wrapped
			os.Exit(code.ExitCode())
		}
		fmt.Fprintf(os.Stderr, "psi-shim: %v\n", err)
		os.Exit(1)
	}
}
