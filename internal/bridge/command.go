package bridge

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// enginePatience bounds one question to an engine.
const enginePatience = 30 * time.Second

// command is an engine's command line.
type command struct {
	words []string
	run   int // index of the word "run" of an engine that is known; 0: nothing is known of it
}

// DefaultCommand is what "podman" alone stands for. The runtime's name is the one that
// `psi-runtime install --podman` writes; the image is the one of `psi-runtime rootfs build
// --format oci`.
func DefaultCommand() []string {
	return strings.Fields("podman --runtime psi-runtime run -i --rm --network none localhost/psi-python:3.11")
}

// parseCommand recognises what the words ask for.
func parseCommand(words []string) (command, error) {
	if len(words) == 0 || words[0] == "" {
		return command{}, errors.New("no command: give the engine's command after --, such as `-- podman run -i IMAGE`")
	}
	c := command{words: words}
	if !slices.Contains([]string{"podman", "docker"}, c.engine()) {
		return c, nil
	}
	c.run = max(slices.Index(words, "run"), 0)
	if c.run == 0 {
		return c, nil // podman attach, start -ai, exec -i: somebody else's container
	}
	flags := words[c.run+1:]
	if slices.Contains(flags, "-it") || slices.Contains(flags, "-ti") {
		return c, fmt.Errorf("%s: with -t the guest's channel would be a terminal: give -i alone", c)
	}
	if !slices.ContainsFunc(flags, func(w string) bool { return w == "-i" || strings.HasPrefix(w, "--interactive") }) {
		return c, fmt.Errorf("%s: without -i the guest's channel would be closed: add it after run", c)
	}
	for _, own := range []string{"--cidfile", "--detach", "-d"} {
		if given(flags, own) {
			return c, fmt.Errorf("%s: %s cannot be used here: the bridge needs to know the container and to hold its stdio", c, own)
		}
	}
	return c, nil
}

// engine is the program's name without its directory.
func (c command) engine() string { return filepath.Base(c.words[0]) }

// known says whether the engine can be asked about the container.
func (c command) known() bool { return c.run > 0 }

func (c command) String() string { return strings.Join(c.words, " ") }

// with is the command with more flags of its run.
func (c command) with(flags ...string) []string {
	return slices.Insert(slices.Clone(c.words), c.run+1, flags...)
}

// ask runs another command of the same engine, with the same global flags, and returns
// what it prints.
func (c command) ask(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), enginePatience)
	defer cancel()
	args := append(slices.Clone(c.words[1:c.run]), words...)
	cmd := exec.CommandContext(ctx, c.words[0], args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		text := ""
		if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
			text = ": " + printable(string(failed.Stderr))
		}
		return "", fmt.Errorf("%s %s: %w%s", c.engine(), words[0], err, text)
	}
	return strings.TrimSpace(string(out)), nil
}

// remove is how the engine is told to kill and forget a container; one that is not there is fine.
func (c command) remove(id string) []string {
	if c.engine() == "docker" {
		return []string{"rm", "--force", id}
	}
	return []string{"rm", "--force", "--ignore", "--time", "0", id}
}

// gives says whether one of the flags of a run is in the command.
func (c command) gives(flags ...string) bool {
	return slices.ContainsFunc(flags, func(flag string) bool { return given(c.words[c.run+1:], flag) })
}

// given says whether a flag is among the words, in either spelling.
func given(words []string, flag string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return w == flag || strings.HasPrefix(w, flag+"=") })
}
