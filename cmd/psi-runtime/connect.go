package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
)

func connectCommand(g *global) *cli.Command {
	return &cli.Command{
		Name: "connect", Usage: "connect to a port that a guest listens at and its policy exposes", ArgsUsage: "ID PORT",
		Description: "ID is a container of a psi bundle, or a guest of a supervisor (psi-…). Stdin and stdout are the connection; " +
			"with --listen each connection to a unix socket is one.",
		Flags: []cli.Flag{
			&cli.PathFlag{Name: "listen", Usage: "make a unix socket `FILE` for this user, until it is interrupted"},
			&cli.DurationFlag{Name: "timeout", Value: 5 * time.Second, Usage: "how long the guest may take to accept"},
		},
		Action: func(c *cli.Context) error {
			if err := needArgs(c, 2, 2); err != nil {
				return err
			}
			port, err := strconv.ParseUint(c.Args().Get(1), 10, 16)
			if err != nil || port == 0 {
				return fmt.Errorf("%q is not a port: write a number from 1 to 65535", c.Args().Get(1))
			}
			guest, err := findExposed(g, c.Args().First(), uint16(port), c.Duration("timeout"))
			if err != nil {
				return err
			}
			defer func() { _ = guest.close() }()
			if path := c.Path("listen"); path != "" {
				return listenFor(guest, path)
			}
			conn, err := guest.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			return converse(conn, c.App.Reader, c.App.Writer)
		},
	}
}

// exposed is a guest's port.
type exposed struct {
	connect func() (*os.File, error)
	close   func() error
}

func (e exposed) dial() (*net.TCPConn, error) {
	file, err := e.connect()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("opening the connection to the guest: %w", err)
	}
	socket, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("the connection to the guest is none of TCP"), conn.Close())
	}
	return socket, nil
}

// findExposed finds a container of this runtime's own, or else a supervisor's guest.
func findExposed(g *global, id string, port uint16, timeout time.Duration) (exposed, error) {
	c, err := container.Load(g.root, id)
	if err == nil {
		connect, err := exposedBy(c, port, timeout)
		if err != nil {
			c.Close()
			return exposed{}, err
		}
		return exposed{connect, func() error { c.Close(); return nil }}, nil
	}
	if !errors.Is(err, container.ErrNotExist) {
		return exposed{}, err
	}
	tool, findErr := control.OwnGuest(id, "psi-runtime "+version)
	if findErr != nil {
		return exposed{}, fmt.Errorf("connecting to port %d of guest %q: %w", port, id, wayToGuest(findErr))
	}
	return exposed{func() (*os.File, error) {
		file, err := tool.AskFile("connect", map[string]any{"guest": id, "port": port, "timeout": timeout.Seconds()}, nil)
		if err == nil && file == nil {
			err = errors.New("the supervisor answered connect without a socket")
		}
		return file, err
	}, tool.Close}, nil
}

// exposedBy is the way to a port of a container, if the policy that it was made with
// exposes it.
func exposedBy(c *container.Container, port uint16, timeout time.Duration) (func() (*os.File, error), error) {
	record, err := engine.ReadRecord(c.Annotations())
	switch {
	case err != nil:
		return nil, err
	case record == nil || !record.Own:
		return nil, fmt.Errorf("container %s is not of a bundle of psi's: its network is its engine's", c.ID())
	case !slices.Contains(record.Policy.Expose(), port):
		return nil, fmt.Errorf("connecting to port %d of container %s: its policy does not expose it, %v: expose: [%d] would", port, c.ID(), record.Policy.Expose(), port)
	}
	return func() (*os.File, error) {
		netns, err := c.NetNS()
		if err != nil {
			return nil, err
		}
		defer netns.Close()
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		return attend.ConnectInside(ctx, netns, port)
	}, nil
}

// halves is a connection one of whose directions can end before the other.
type halves interface {
	net.Conn
	CloseWrite() error
}

// converse moves bytes both ways. It ends when what the guest says does.
func converse(conn halves, in io.Reader, out io.Writer) error {
	go func() {
		_, _ = io.Copy(conn, in)
		_ = conn.CloseWrite() // the guest may still have something to say
	}()
	_, err := io.Copy(out, conn)
	return err
}

// listenFor serves a unix socket until the process is asked to end, or whoever runs the
// guest is gone.
func listenFor(guest exposed, path string) error {
	mask := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(mask)
	if err != nil {
		return fmt.Errorf("listening for connections to the guest: %w", err)
	}
	defer l.Close() // removes the socket, too
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		client, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting a connection to the guest: %w", err)
		}
		conn, err := guest.dial()
		var refused *control.Refusal
		switch {
		case err == nil:
			go relay(client, conn)
		case errors.As(err, &refused), errors.Is(err, attend.ErrNotListening), errors.Is(err, attend.ErrNotAccepting):
			logrus.Warn(err)
			client.Close()
		default:
			client.Close()
			return err
		}
	}
}

// relay moves bytes both ways until both directions have ended, or one has failed. How
// the two end their conversation is theirs to know.
func relay(client, conn halves) {
	defer client.Close()
	defer conn.Close()
	up := make(chan struct{})
	go func() {
		defer close(up)
		if _, err := io.Copy(conn, client); err != nil {
			conn.Close()
			return
		}
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(client, conn); err != nil {
		return
	}
	_ = client.CloseWrite()
	<-up
}

// wayToGuest says how to name a guest.
func wayToGuest(err error) error {
	if errors.Is(err, control.ErrNoGuest) {
		return fmt.Errorf("%w: the id is what Sandbox.id says, psi-…; only guests of a supervisor can be asked about, by root", err)
	}
	return err
}
