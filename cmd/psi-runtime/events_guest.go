package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
)

// eventsOf prints the events of a container of psi-runtime's own, or else of a guest that
// a supervisor runs for the same user.
func eventsOf(g *global) cli.ActionFunc {
	ofContainer := withContainer(g, func(c *container.Container, ctx *cli.Context) error {
		o := eventsOptions{interval: ctx.Duration("interval"), once: ctx.Bool("stats")}
		return events(c, o, ctx.App.Writer)
	})
	return func(ctx *cli.Context) error {
		err := ofContainer(ctx)
		if !errors.Is(err, container.ErrNotExist) || ctx.NArg() != 1 {
			return err
		}
		tool, findErr := control.WatchGuest(ctx.Args().First(), "psi-runtime "+version)
		if errors.Is(findErr, control.ErrNoGuest) {
			return err
		}
		if findErr != nil {
			return findErr
		}
		defer tool.Close()
		return guestEvents(tool, ctx.Args().First(), ctx.App.Writer)
	}
}

// guestEvents prints a line of JSON for each event of a guest until the guest has ended.
// What the guest says in it (paths, its name for itself) reaches no terminal as it is.
func guestEvents(tool *control.Tool, guest string, out io.Writer) error {
	for {
		message, err := tool.Next()
		if err != nil {
			return fmt.Errorf("the supervisor of guest %s has ended: %w", guest, err)
		}
		var head struct {
			Guest  string `json:"guest"`
			Exited struct {
				Guest string `json:"guest"`
			} `json:"exited"`
		}
		if err := json.Unmarshal(message, &head); err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if head.Guest != guest && head.Exited.Guest != guest {
			continue
		}
		if _, err := fmt.Fprintln(out, asciiJSON(message)); err != nil || head.Exited.Guest == guest {
			return err
		}
	}
}

// toldOf gives the lines of what happens to a container with a policy, until it has ended.
// The channel is nil if it has none: nobody attends it.
func toldOf(c *container.Container) (<-chan string, error) {
	record, err := engine.ReadRecord(c.Annotations())
	if err != nil || record == nil {
		return nil, err
	}
	conn, err := control.DialEvents(c.StateDir())
	if err != nil {
		return nil, err
	}
	told := make(chan string)
	go func() {
		defer close(told)
		defer conn.Close()
		lines := bufio.NewReader(conn)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			told <- asciiJSON(bytes.TrimSuffix(line, []byte{'\n'}))
		}
	}()
	return told, nil
}

// lastTold prints what is told between the end of a container and that of its attendance.
func lastTold(told <-chan string, w io.Writer) error {
	late := time.After(farewell)
	for told != nil {
		select {
		case line, ok := <-told:
			if !ok {
				return nil
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		case <-late:
			return nil
		}
	}
	return nil
}

// asciiJSON writes JSON with nothing but printable ASCII.
func asciiJSON(text []byte) string {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r >= ' ' && r < 0x7f {
			out = append(out, text[0])
		} else if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		} else {
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[size:]
	}
	return string(out)
}
