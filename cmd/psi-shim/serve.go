package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/supervisor"
)

// serveOptions are the flags of `psi-shim serve`.
type serveOptions struct {
	config supervisor.Config
	fd     int // of the control socket; -1 for a shared supervisor
}

func serveCommand(log *logrus.Logger) *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run guests for one client (--fd) or for everybody in a group (--socket)",
		Description: "With --fd N the supervisor belongs to the process that made the socket pair of which\n" +
			"descriptor N is one end: it and its guests end with that process. With --socket PATH it\n" +
			"serves whoever may connect, until SIGTERM. It runs as root.",
		ArgsUsage:    " ",
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return err },
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "fd", Value: -1, Usage: "serve the client at the other end of this inherited socket"},
			&cli.PathFlag{Name: "socket", Usage: "listen on a unix socket at `PATH`, such as /run/psi/psi.sock"},
			&cli.StringFlag{Name: "group", Value: "psi", Usage: "`GROUP` whose members may connect to --socket"},
			&cli.PathFlag{Name: "rootfs", Usage: "root file system of the guests (`DIR`, made by psi-runtime rootfs build)"},
			&cli.PathFlag{Name: "run-dir", Value: container.DefaultRunDir, Usage: "`DIR` of what this machine's guests own"},
			&cli.IntFlag{Name: "max-guests", Value: 256, Usage: "most guests that one user may have at a time"},
			&cli.IntFlag{Name: "pool", Value: 2, Usage: "`N` guests of each kind in use are made before they are wanted; 0: none"},
			&cli.Float64Flag{Name: "pool-cpu", Value: supervisor.DefaultPoolCPU, Usage: "`CORES` that making them may take"},
			&cli.StringFlag{Name: "log-level", Value: "warning", Usage: "error, warning, info or debug; the log goes to stderr"},
		},
		Action: func(c *cli.Context) error {
			options, err := parseServe(c)
			if err != nil {
				return err
			}
			if err := setLevel(log, options.config.LogLevel); err != nil {
				return err
			}
			return serve(options)
		},
	}
}

// parseServe turns flags into options and checks them.
func parseServe(c *cli.Context) (serveOptions, error) {
	o := serveOptions{
		fd: c.Int("fd"),
		config: supervisor.Config{
			Socket: c.Path("socket"), Group: c.String("group"), Rootfs: c.Path("rootfs"), RunDir: c.Path("run-dir"),
			MaxGuests: c.Int("max-guests"), Pool: supervisor.PoolOptions{Size: c.Int("pool"), CPU: c.Float64("pool-cpu")}, LogLevel: c.String("log-level"), Version: "psi-shim " + version,
		},
	}
	if c.NArg() > 0 {
		return o, fmt.Errorf("serve takes no argument, but got %q", c.Args().First())
	}
	if (o.fd >= 0) == (o.config.Socket != "") {
		return o, errors.New("serve needs one of --fd N (a client's own supervisor) and --socket PATH (a shared one)")
	}
	if o.fd >= 0 && o.fd < 3 {
		return o, fmt.Errorf("--fd %d: 0, 1 and 2 are not for the control socket", o.fd)
	}
	if o.config.MaxGuests < 1 {
		return o, fmt.Errorf("--max-guests %d: at least 1", o.config.MaxGuests)
	}
	if o.config.Pool.Size < 0 || o.config.Pool.Size > 1024 {
		return o, fmt.Errorf("--pool %d: a number from 0 to 1024", o.config.Pool.Size)
	}
	if !(o.config.Pool.CPU > 0) {
		return o, fmt.Errorf("--pool-cpu %g: a number of processors above 0, such as 0.5", o.config.Pool.CPU)
	}
	for _, path := range []*string{&o.config.Socket, &o.config.Rootfs, &o.config.RunDir} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return o, fmt.Errorf("finding %s: %w", *path, err)
		}
		*path = absolute
	}
	return o, nil
}

func serve(o serveOptions) error {
	var control *os.File
	if o.fd >= 0 {
		control = os.NewFile(uintptr(o.fd), "control socket")
	}
	code, err := supervisor.Launch(o.config, control)
	if err != nil || code == 0 {
		return err
	}
	return cli.Exit("", code) // the inner process has said why
}

// superviseCommand is the inner process of serve.
func superviseCommand(log *logrus.Logger) *cli.Command {
	return &cli.Command{
		Name: supervisor.SuperviseCommand, Hidden: true, HideHelp: true, SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			var config supervisor.Config
			if err := json.Unmarshal([]byte(c.Args().First()), &config); err != nil {
				return fmt.Errorf("%s is not a command for people: use `psi-shim serve`", supervisor.SuperviseCommand)
			}
			if err := setLevel(log, config.LogLevel); err != nil {
				return err
			}
			return supervisor.Supervise(config, log)
		},
	}
}

func setLevel(log *logrus.Logger, name string) error {
	level, err := logrus.ParseLevel(name)
	if err != nil {
		return fmt.Errorf("--log-level %q: give one of error, warning, info, debug", name)
	}
	log.SetLevel(level)
	return nil
}
