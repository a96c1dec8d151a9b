package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// needArgs checks how many arguments are left after the flags; most < 0 is no limit.
func needArgs(c *cli.Context, least, most int) error {
	n := c.NArg()
	if n >= least && (most < 0 || n <= most) {
		return nil
	}
	want := fmt.Sprintf("at least %d", least)
	switch {
	case least == most:
		want = fmt.Sprintf("exactly %d", least)
	case n > most && most >= 0:
		want = fmt.Sprintf("at most %d", most)
	}
	return fmt.Errorf("%s takes %s argument(s), not %d: see psi-runtime %s --help", c.Command.Name, want, n, c.Command.Name)
}

// flagsFirst moves a command's flags before its arguments, as runc's callers may
// write them in any order (`delete ID --force`) and the flag package stops at the
// first argument. The arguments of exec and ps stay where they are: what follows
// their id is another program's. Short names become long ones, which the cli package
// would refuse to see mixed (`-e A=b --env C=d`).
func flagsFirst(app *cli.App, args []string) []string {
	at := commandAt(app, args)
	if at < 0 {
		return args
	}
	cmd := app.Command(args[at])
	if cmd == nil || len(cmd.Subcommands) > 0 {
		return args
	}
	inOrder := cmd.Name == "exec" || cmd.Name == "ps"
	out := append([]string{}, args[:at+1]...)
	var rest []string
	for i := at + 1; i < len(args); i++ {
		a := args[i]
		if a == "--" || inOrder && !isFlag(a) {
			rest = append(rest, args[i:]...)
			break
		}
		if !isFlag(a) {
			rest = append(rest, a)
			continue
		}
		out = append(out, longName(cmd.Flags, a))
		if takesValue(cmd.Flags, a) && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return append(out, rest...)
}

// commandAt is the index of the command's name, or -1.
func commandAt(app *cli.App, args []string) int {
	for i := 1; i < len(args); i++ {
		if !isFlag(args[i]) {
			return i
		}
		if takesValue(app.Flags, args[i]) {
			i++
		}
	}
	return -1
}

func isFlag(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

// longName replaces the alias of a flag by its name.
func longName(flags []cli.Flag, arg string) string {
	name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, f := range flags {
		if names := f.Names(); slices.Contains(names[1:], name) {
			if hasValue {
				return "--" + names[0] + "=" + value
			}
			return "--" + names[0]
		}
	}
	return arg
}

// takesValue reports whether the word after flag is its value.
func takesValue(flags []cli.Flag, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
}
