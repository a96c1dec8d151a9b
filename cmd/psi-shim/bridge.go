package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/bridge"
	"github.com/psi-runtime/psi/pkg/policy"
)

func bridgeCommand(log *logrus.Logger) *cli.Command {
	return &cli.Command{
		Name:  "bridge",
		Usage: "carry the channel of a guest that an engine runs",
		Description: "COMMAND is any engine's command whose stdin and stdout are a guest's, such as\n" +
			"`podman run -i …` or `kubectl attach -i …`. With --fd N the bridge serves the process\n" +
			"that started it, as serve does, and runs COMMAND for each guest. Without, it runs\n" +
			"COMMAND once and carries frames between its own stdin and stdout; it exits with the\n" +
			"guest's code (125, 126 and 127 are the engine's), and with 1 on a failure of its own.\n\n" +
			"podman alone stands for `" + strings.Join(bridge.DefaultCommand(), " ") + "`.\n" +
			"Only podman run is given a policy; its runtime must be psi-runtime.",
		ArgsUsage:    "-- COMMAND...",
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return err },
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "fd", Value: -1, Usage: "serve the client at the other end of this inherited socket"},
			&cli.StringFlag{Name: "policy", Usage: "without --fd: `NAME|FILE` of the guest's policy (podman only)"},
			&cli.DurationFlag{Name: "grace", Value: 2 * time.Second, Usage: "without --fd: `TIME` between SIGTERM and SIGKILL"},
			&cli.StringFlag{Name: "log-level", Value: "warning", Usage: "error, warning, info or debug; the log goes to stderr"},
		},
		Action: func(c *cli.Context) error {
			if err := setLevel(log, c.String("log-level")); err != nil {
				return err
			}
			o := bridge.Options{Command: c.Args().Slice(), Program: "/proc/self/exe", Version: "psi-shim " + version, Log: log}
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
			defer stop()
			if fd := c.Int("fd"); fd >= 0 {
				if fd < 3 || c.IsSet("policy") || c.IsSet("grace") {
					return errors.New("--fd N is 3 or more, and goes without --policy and --grace: the client says what each guest may do")
				}
				return bridge.Serve(ctx, o, os.NewFile(uintptr(fd), "control socket"))
			}
			return relay(ctx, o, c.String("policy"), c.Duration("grace"))
		},
	}
}

func relay(ctx context.Context, o bridge.Options, name string, grace time.Duration) error {
	r := bridge.RelayOptions{Options: o, Grace: grace, Stdin: os.Stdin, Stdout: os.Stdout}
	if name != "" {
		p, err := policy.Load(name)
		if err != nil {
			return fmt.Errorf("reading the policy: %w", err)
		}
		r.Policy = &p
	}
	code, err := bridge.Relay(ctx, r)
	if err != nil || code == 0 {
		return err
	}
	return cli.Exit("", code)
}

// keepCommand is the process that a bridge leaves behind when it is killed.
func keepCommand() *cli.Command {
	return &cli.Command{
		Name: bridge.KeepCommand, Hidden: true, HideHelp: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			if c.NArg() < 2 {
				return fmt.Errorf("%s is not a command for people: use `psi-shim bridge`", bridge.KeepCommand)
			}
			return bridge.Keep(os.Stdin, c.Args().First(), c.Args().Tail())
		},
	}
}
