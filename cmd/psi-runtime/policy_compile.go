package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

func policyCompileCommand() *cli.Command {
	return &cli.Command{
		Name: "compile", Usage: "print the tables that a policy comes to, and their sizes", ArgsUsage: "NAME|FILE[#SANDBOX]",
		Flags: []cli.Flag{varFlag(), jsonFlag(), &cli.BoolFlag{Name: "table", Usage: "with --json: the automaton itself, too"}},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 1, 1); err != nil {
				return err
			}
			e, err := effectivePolicy(c, c.Args().First())
			if err != nil {
				return err
			}
			compiled, err := compilePolicy(e.Policy, c.Bool("table"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c, compiled)
			}
			compiled.print(c)
			return nil
		},
	}
}

// compiledPolicy is what compile prints.
type compiledPolicy struct {
	Digest    string        `json:"digest"`
	Canonical int           `json:"canonical_bytes"`
	FS        compiledFS    `json:"fs"`
	TCP       []compiledTCP `json:"tcp"`
	Expose    []uint16      `json:"expose,omitempty"`
	Imports   *int          `json:"imports"` // null: every module
}

type compiledFS struct {
	Rules        int      `json:"rules"`
	States       int      `json:"states"`
	Classes      int      `json:"classes"`
	Bytes        int      `json:"bytes"`
	Milliseconds float64  `json:"ms"`
	Start        uint16   `json:"start"`
	ClassOf      []int    `json:"class_of,omitempty"` // by byte
	Table        []uint16 `json:"table,omitempty"`
}

// compiledTCP is one line of the longest-prefix table.
type compiledTCP struct {
	Protocol string `json:"protocol"` // tcp or udp
	Ports    string `json:"ports"`    // one or a range
	Block    string `json:"block"`
	Allow    bool   `json:"allow"`
	Name     string `json:"name,omitempty"` // whose synthetic address the block is
}

func compilePolicy(p policy.Policy, table bool) (compiledPolicy, error) {
	out := compiledPolicy{Digest: p.Digest(), Canonical: len(p.Canonical()), TCP: []compiledTCP{}}
	rules := p.FS()
	start := time.Now()
	automaton, err := policy.CompileGlobs(rules)
	if err != nil {
		return out, err
	}
	out.FS = compiledFS{Rules: len(rules), States: automaton.States(), Classes: automaton.Width - 1, Bytes: automaton.Size(),
		Milliseconds: float64(time.Since(start).Microseconds()) / 1000, Start: automaton.Start}
	if table {
		out.FS.Table = automaton.Table
		for _, class := range automaton.Classes {
			out.FS.ClassOf = append(out.FS.ClassOf, int(class))
		}
	}
	if out.TCP, err = compileTCP(p.Endpoints()); err != nil {
		return out, err
	}
	out.Expose = p.Expose()
	if modules, limited := p.Imports(); limited {
		n := len(modules)
		out.Imports = &n
	}
	return out, nil
}

// compileTCP makes the table of the connect programs.
func compileTCP(endpoints []policy.Endpoint) ([]compiledTCP, error) {
	list, err := endpoint.Compile(endpoints)
	if err != nil {
		return nil, err
	}
	synthetic, err := endpoint.Synthetic(list.Names(), nil)
	if err != nil {
		return nil, err
	}
	addresses, names := syntheticNames(synthetic)
	entries, err := list.Entries(addresses)
	if err != nil {
		return nil, err
	}
	table := []compiledTCP{}
	for _, e := range entries {
		table = append(table, compiledTCP{Protocol: e.Protocol.String(), Ports: e.Ports.String(), Block: e.Block.String(), Allow: e.Allow, Name: names[e.Block.Addr().Unmap()]})
	}
	return table, nil
}

func (p compiledPolicy) print(c *cli.Context) {
	w := c.App.Writer
	fmt.Fprintf(w, "digest   %s\ncanonical %d bytes\n", p.Digest, p.Canonical)
	fmt.Fprintf(w, "fs       %d rules: %d states, %d classes of bytes, %d bytes of table, %.1f ms\n",
		p.FS.Rules, p.FS.States, p.FS.Classes, p.FS.Bytes, p.FS.Milliseconds)
	fmt.Fprintf(w, "tcp      %d entries\n", len(p.TCP))
	for _, e := range p.TCP {
		verdict := "deny"
		if e.Allow {
			verdict = "allow"
		}
		fmt.Fprintf(w, "  %-5s  %s  %5s  %s  %s\n", verdict, e.Protocol, e.Ports, e.Block, e.Name)
	}
	if len(p.Expose) > 0 {
		fmt.Fprintf(w, "expose   %v\n", p.Expose)
	}
	if p.Imports == nil {
		fmt.Fprintln(w, "imports  every module")
		return
	}
	fmt.Fprintf(w, "imports  %d modules\n", *p.Imports)
}
