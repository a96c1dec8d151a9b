package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/pkg/policy"
)

// policyCommand groups what one does with policies without running anything.
func policyCommand(g *global) *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "check, show, explain, compare, format and apply policies",
		Subcommands: []*cli.Command{
			anyOrder(policyCheckCommand()), anyOrder(policyShowCommand()), anyOrder(policyExplainCommand()),
			anyOrder(policyDiffCommand()), anyOrder(policyCompileCommand()), anyOrder(policyFmtCommand()),
			anyOrder(policyApplyCommand(g)),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("unknown command %q: see psi-runtime policy --help", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

// codeTrouble is the exit code when there is no answer, where 0 is yes and 1 is
// no, as with diff and grep.
const codeTrouble = 2

// trouble marks an error as one that leaves the question open.
func trouble(err error) error {
	if err == nil {
		return nil
	}
	return &codedError{codeTrouble, err}
}

// anyOrder lets a subcommand's flags stand behind its arguments, where the flag
// package stops to look for them.
func anyOrder(cmd *cli.Command) *cli.Command {
	cmd.HideHelpCommand = true
	cmd.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
		return trouble(fmt.Errorf("%w: see psi-runtime policy %s --help", err, cmd.Name))
	}
	return &cli.Command{
		Name: cmd.Name, Usage: cmd.Usage, ArgsUsage: cmd.ArgsUsage, Description: cmd.Description,
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			app := &cli.App{
				Name: "psi-runtime policy", HelpName: "psi-runtime policy", HideVersion: true, HideHelpCommand: true,
				Reader: c.App.Reader, Writer: c.App.Writer, ErrWriter: c.App.ErrWriter,
				Commands:       []*cli.Command{cmd},
				ExitErrHandler: func(*cli.Context, error) {},

				DisableSliceFlagSeparator: true,
			}
			return plainly(c, app.Run(flagsFirst(app, append([]string{app.Name, cmd.Name}, c.Args().Slice()...))))
		},
	}
}

// plainly prints an error as it is: what is wrong with a policy is for people and
// editors, who read file:line:column, not for the log of an engine.
func plainly(c *cli.Context, err error) error {
	var status exitStatus
	if err == nil || errors.As(err, &status) {
		return err
	}
	fmt.Fprintln(c.App.ErrWriter, err)
	var coded *codedError
	if errors.As(err, &coded) {
		return exitStatus(coded.code)
	}
	return exitStatus(codeFailure)
}

// policyArgs checks how many arguments are left after the flags; most < 0 is no
// limit.
func policyArgs(c *cli.Context, least, most int) error {
	if n := c.NArg(); n >= least && (most < 0 || n <= most) {
		return nil
	}
	return fmt.Errorf("usage: psi-runtime policy %s [options] %s", c.Command.Name, c.Command.ArgsUsage)
}

// varFlag gives the variables of a policy their values.
func varFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "var", Usage: "`NAME=VALUE` of a variable of the policy"}
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// parseVariables reads NAME=VALUE pairs.
func parseVariables(pairs []string) (map[string]string, error) {
	values := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, found := strings.Cut(pair, "=")
		if !found {
			return nil, fmt.Errorf("--var %q: write NAME=VALUE", pair)
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("--var %s is given twice: give it one value", name)
		}
		values[name] = value
	}
	return values, nil
}

// openPolicy reads what a command line names: a file, FILE#SANDBOX, a name, or "-"
// for stdin.
func openPolicy(c *cli.Context, name string) (data []byte, source, sandbox string, err error) {
	if file, box := policy.SplitSandbox(name); file == "-" {
		data, err = io.ReadAll(io.LimitReader(c.App.Reader, policy.MaxDocument+1))
		if err != nil {
			return nil, "", "", fmt.Errorf("reading policy from stdin: %w", err)
		}
		return data, "stdin", box, nil
	}
	return policy.Open(name)
}

// effectivePolicy resolves one policy of the command line.
func effectivePolicy(c *cli.Context, name string) (policy.Effective, error) {
	values, err := parseVariables(c.StringSlice("var"))
	if err != nil {
		return policy.Effective{}, err
	}
	data, source, sandbox, err := openPolicy(c, name)
	if err != nil {
		return policy.Effective{}, err
	}
	document, errs := policy.ReadDocument(data, source)
	if len(errs) > 0 {
		return policy.Effective{}, shown(errs[0])
	}
	for _, note := range document.Notes() {
		fmt.Fprintln(c.App.ErrWriter, "note:", note)
	}
	effective, err := document.Resolve(policy.Choice{Sandbox: sandbox, Variables: values})
	return effective, shown(err)
}

// shown adds the line of the document to an error of a policy.
func shown(err error) error {
	var e *policy.Error
	if !errors.As(err, &e) || e.Excerpt() == "" {
		return err
	}
	return fmt.Errorf("%w\n%s", err, strings.TrimSuffix(e.Excerpt(), "\n"))
}

// writeFile replaces a file's content, or leaves it as it was.
func writeFile(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(dirOf(path), ".policy-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) //nolint:errcheck // gone after the rename
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Chmod(info.Mode().Perm()), temporary.Close())
	if err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}

func dirOf(path string) string {
	if at := strings.LastIndexByte(path, '/'); at >= 0 {
		return path[:at+1]
	}
	return "."
}
