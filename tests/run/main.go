// Command run runs the suites of tests/suites.txt on this machine, each under its time limit, and
// prints a table of what each took. It fails when a suite fails, takes longer than the table gives
// it, or when a package has tests but no line in the table.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/psi-runtime/psi/tests/suite"
)

const buildTags = "seccomp,netgo,osusergo,urfave_cli_no_docs"

func main() {
	pattern := flag.String("run", "", "run only the tests that match `REGEXP`")
	flag.Parse()
	if err := run(*pattern, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

// run runs the named suites, or all, in the table's order.
func run(pattern string, names []string) error {
	suites, err := suite.Read("tests/suites.txt")
	if err != nil {
		return err
	}
	if err := complete(suites); err != nil {
		return err
	}
	var rows, failed []string
	for _, s := range suites {
		if s.Host == 0 || len(names) > 0 && !slices.Contains(names, s.Name) {
			continue
		}
		start := time.Now()
		verdict := "ok"
		if err := runSuite(s, pattern); err != nil {
			verdict = err.Error()
			failed = append(failed, s.Name)
		}
		rows = append(rows, fmt.Sprintf("host %-38s %6.1f s of %d s  %s", s.Name, time.Since(start).Seconds(), s.Host, verdict))
	}
	if len(rows) == 0 {
		return fmt.Errorf("no suite of tests/suites.txt is named %s", strings.Join(names, ", "))
	}
	fmt.Println(strings.Join(rows, "\n"))
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// runSuite runs one suite with its output on ours. Go's own -timeout prints every goroutine, so it
// strikes first; the context's limit is for what does not obey.
func runSuite(s suite.Suite, pattern string) error {
	limit := time.Duration(s.Host) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit+15*time.Second)
	defer cancel()
	args := []string{"go", "test", "-count=1", "-tags", buildTags, "-timeout", limit.String()}
	args = append(append(args, s.HostArgs...), "./"+s.Name)
	if pattern != "" {
		args = append(args, "-v", "-run", pattern)
	}
	dir := "."
	if s.Name == suite.Python {
		dir = suite.Python
		args = []string{"/usr/bin/python3.11", "-m", "unittest", "discover", "-s", "tests", "-t", "."}
		if pattern != "" {
			args = append(args, "-v", "-k", pattern)
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.WaitDelay = 5 * time.Second
	fmt.Println("==>", strings.Join(args, " "))
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("over its time limit of %v", limit)
	}
	return err
}

// complete refuses a table that leaves out a package with tests.
func complete(suites []suite.Suite) error {
	out, err := exec.Command("go", "list", "-tags", buildTags, "-f",
		`{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}`, "./...").Output()
	if err != nil {
		return fmt.Errorf("listing packages: %w", err)
	}
	for _, line := range bytes.Fields(out) {
		name := strings.TrimPrefix(string(line), "github.com/psi-runtime/psi/")
		if !slices.ContainsFunc(suites, func(s suite.Suite) bool { return s.Name == name }) {
			return fmt.Errorf("package %s has tests but no line in tests/suites.txt: add one with its time limit", name)
		}
	}
	return nil
}
