package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
)

func updateCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:      "update",
		Usage:     "change the limits of a container",
		ArgsUsage: "ID",
		Description: "Limits that are not named stay as they are. The file of --resources holds the\n" +
			"member linux.resources of a bundle's config.json, for example\n" +
			`{"memory": {"limit": 67108864}, "pids": {"limit": 20}}; with it the other flags` + "\n" +
			"but those of Intel RDT are ignored. Memory sizes may have a unit (512k, 64M, 1G); -1 is no limit.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "read the limits from `FILE`, or from standard input with -"},
			&cli.Int64Flag{Name: "pids-limit", Usage: "most processes and threads"},
			&cli.StringFlag{Name: "memory", Usage: "memory in bytes"},
			&cli.StringFlag{Name: "memory-reservation", Usage: "memory that is not taken away when others need some, in bytes"},
			&cli.StringFlag{Name: "memory-swap", Usage: "memory and swap together, in bytes"},
			&cli.StringFlag{Name: "kernel-memory", Usage: "ignored", Hidden: true},
			&cli.StringFlag{Name: "kernel-memory-tcp", Usage: "ignored", Hidden: true},
			&cli.StringFlag{Name: "cpu-period", Usage: "period of --cpu-quota in microseconds"},
			&cli.StringFlag{Name: "cpu-quota", Usage: "cpu time in a period, in microseconds"},
			&cli.StringFlag{Name: "cpu-burst", Usage: "unused cpu time that later periods may use, in microseconds"},
			&cli.StringFlag{Name: "cpu-share", Usage: "weight against other containers"},
			&cli.StringFlag{Name: "cpu-idle", Usage: "1: only cpu time that nobody else wants; 0: ordinary scheduling"},
			&cli.StringFlag{Name: "cpu-rt-period", Usage: "period of --cpu-rt-runtime in microseconds"},
			&cli.StringFlag{Name: "cpu-rt-runtime", Usage: "realtime cpu time in a period, in microseconds"},
			&cli.StringFlag{Name: "cpuset-cpus", Usage: "cpus to use, for example 0-3,7"},
			&cli.StringFlag{Name: "cpuset-mems", Usage: "memory nodes to use"},
			&cli.UintFlag{Name: "blkio-weight", Usage: "weight of block I/O, 10 to 1000"},
			&cli.StringFlag{Name: "l3-cache-schema", Usage: "Intel RDT/CAT schema"},
			&cli.StringFlag{Name: "mem-bw-schema", Usage: "Intel RDT/MBA schema"},
		},
		Action: withLocked(g, false, func(c *container.Container, ctx *cli.Context) error {
			s, err := parseUpdate(ctx)
			if err != nil {
				return err
			}
			if s, err = guardUpdate(c, s); err != nil {
				return err
			}
			return c.Set(s)
		}),
	}
}

func parseUpdate(c *cli.Context) (s container.Settings, err error) {
	s.RDT = container.IntelRDT{L3CacheSchema: c.String("l3-cache-schema"), MemBwSchema: c.String("mem-bw-schema")}
	if name := c.String("resources"); name != "" {
		s.Resources, err = readResources(name)
	} else {
		s.Resources, err = resourceFlags(c)
	}
	if err != nil {
		return s, err
	}
	//nolint:staticcheck // deprecated, and still sent
	if m := s.Resources.Memory; m != nil && (m.Kernel != nil || m.KernelTCP != nil) {
		logrus.Warn("limits of kernel memory are ignored: the kernel has none any more")
	}
	return s, nil
}

// readResources reads a file, or standard input.
func readResources(name string) (*specs.LinuxResources, error) {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("reading --resources: %w", err)
		}
		defer f.Close()
		in = f
	}
	r := &specs.LinuxResources{}
	if err := json.NewDecoder(in).Decode(r); err != nil {
		return nil, fmt.Errorf("reading --resources %s: %w", name, err)
	}
	return r, nil
}

// resourceFlags reads the limits given one by one.
func resourceFlags(c *cli.Context) (*specs.LinuxResources, error) {
	cpu := &specs.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	memory := &specs.LinuxMemory{}
	r := &specs.LinuxResources{CPU: cpu, Memory: memory}
	if c.IsSet("pids-limit") {
		limit := c.Int64("pids-limit")
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if n := c.Uint("blkio-weight"); n != 0 {
		if n > 1000 {
			return nil, fmt.Errorf("invalid value for blkio-weight: %d: it goes from 10 to 1000", n)
		}
		weight := uint16(n)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	unsigned := func(text string) (uint64, error) { return strconv.ParseUint(text, 10, 64) }
	signed := func(text string) (int64, error) { return strconv.ParseInt(text, 10, 64) }
	for _, read := range []func() error{
		flag(c, "cpu-burst", &cpu.Burst, unsigned), flag(c, "cpu-period", &cpu.Period, unsigned),
		flag(c, "cpu-rt-period", &cpu.RealtimePeriod, unsigned), flag(c, "cpu-share", &cpu.Shares, unsigned),
		flag(c, "cpu-quota", &cpu.Quota, signed), flag(c, "cpu-rt-runtime", &cpu.RealtimeRuntime, signed),
		flag(c, "cpu-idle", &cpu.Idle, signed),
		flag(c, "memory", &memory.Limit, memorySize), flag(c, "memory-swap", &memory.Swap, memorySize),
		flag(c, "memory-reservation", &memory.Reservation, memorySize),
		flag(c, "kernel-memory", &memory.Kernel, memorySize), //nolint:staticcheck // deprecated, and still sent
		flag(c, "kernel-memory-tcp", &memory.KernelTCP, memorySize),
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// flag prepares to read one flag into dst, which stays nil if it is not given.
func flag[T any](c *cli.Context, name string, dst **T, parse func(string) (T, error)) func() error {
	return func() error {
		text := c.String(name)
		if text == "" {
			return nil
		}
		v, err := parse(text)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %w", name, err)
		}
		*dst = &v
		return nil
	}
}

// memorySize reads a number of bytes with a unit, or -1.
func memorySize(text string) (int64, error) {
	if text == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(text)
}
