package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func checkpointCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:        "checkpoint",
		Usage:       "write a running container to images",
		ArgsUsage:   "ID",
		Description: "criu does it, which must be installed. The container is then deleted, unless it is\nleft running. A bundle of psi's, or with a psi policy, is refused.",
		Flags: append(imageFlags(),
			&cli.StringFlag{Name: "parent-path", Usage: "directory of an earlier pre-dump, relative to --image-path"},
			&cli.BoolFlag{Name: "leave-running", Usage: "let the container go on"},
			&cli.BoolFlag{Name: "pre-dump", Usage: "write memory only, and let the container go on"},
			&cli.BoolFlag{Name: "tcp-skip-in-flight", Usage: "skip TCP connections that are not yet established"},
			&cli.BoolFlag{Name: "link-remap", Usage: "link files back that have been unlinked, where possible"},
			&cli.IntFlag{Name: "status-fd", Value: -1, Usage: "file descriptor that gets a zero byte when the lazy page server is ready"},
			&cli.StringFlag{Name: "page-server", Usage: "send memory to `ADDRESS:PORT`"},
		),
		Action: withContainer(g, func(c *container.Container, ctx *cli.Context) error {
			images, err := parseImages(ctx)
			if err != nil {
				return err
			}
			return c.Checkpoint(*images)
		}),
	}
}

// imageFlags are those that checkpoint and restore have in common.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "image-path", Usage: "directory of the images (default: checkpoint in the working directory)"},
		&cli.StringFlag{Name: "work-path", Usage: "directory of criu's logs (default: that of the images)"},
		&cli.BoolFlag{Name: "tcp-established", Usage: "include open TCP connections"},
		&cli.BoolFlag{Name: "ext-unix-sk", Usage: "include unix sockets connected to the outside"},
		&cli.BoolFlag{Name: "shell-job", Usage: "include processes of a terminal of the outside"},
		&cli.BoolFlag{Name: "file-locks", Usage: "include file locks"},
		&cli.BoolFlag{Name: "auto-dedup", Usage: "drop pages of parent images that newer ones replace"},
		&cli.BoolFlag{Name: "lazy-pages", Usage: "restore memory on demand, from a page server"},
		&cli.StringFlag{Name: "manage-cgroups-mode", Usage: "soft, full, strict or ignore (default: criu's own)"},
		&cli.StringSliceFlag{Name: "empty-ns", Usage: "leave the contents of a namespace out; only network, which always is"},
	}
}

func parseImages(c *cli.Context) (*container.Images, error) {
	i := &container.Images{
		Dir: c.String("image-path"), WorkDir: c.String("work-path"), Parent: c.String("parent-path"),
		LeaveRunning: c.Bool("leave-running"), PreDump: c.Bool("pre-dump"), AutoDedup: c.Bool("auto-dedup"),
		TCPEstablished: c.Bool("tcp-established"), TCPSkipInFlight: c.Bool("tcp-skip-in-flight"),
		ExtUnixSockets: c.Bool("ext-unix-sk"), FileLocks: c.Bool("file-locks"),
		ShellJob: c.Bool("shell-job"), LinkRemap: c.Bool("link-remap"),
		LazyPages: c.Bool("lazy-pages"), StatusFD: -1,
		ManageCgroupsMode: c.String("manage-cgroups-mode"),
		LSMProfile:        c.String("lsm-profile"), LSMMountContext: c.String("lsm-mount-context"),
	}
	if c.IsSet("status-fd") {
		i.StatusFD = c.Int("status-fd")
	}
	if i.Dir == "" {
		i.Dir = "checkpoint"
	}
	var err error
	if i.Dir, err = filepath.Abs(i.Dir); err != nil {
		return nil, fmt.Errorf("finding --image-path: %w", err)
	}
	for _, ns := range c.StringSlice("empty-ns") {
		if ns != "network" {
			return nil, fmt.Errorf("namespace %q is not supported: --empty-ns takes network", ns)
		}
	}
	switch i.ManageCgroupsMode {
	case "", "soft", "full", "strict", "ignore":
	default:
		return nil, fmt.Errorf("--manage-cgroups-mode %q: it is soft, full, strict or ignore", i.ManageCgroupsMode)
	}
	if server := c.String("page-server"); server != "" {
		address, port, err := net.SplitHostPort(server)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || address == "" || number == 0 {
			return nil, fmt.Errorf("--page-server %q: it is ADDRESS:PORT", server)
		}
		i.PageServer, i.PagePort = address, int32(number)
	}
	return i, nil
}
