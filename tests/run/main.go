// Command run runs the suites of tests/suites.txt on this machine, each under its time limit, and
// prints a table of what each took. It fails when a suite fails, takes longer than the table gives
// it, or when a package has tests but no line in the table.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/psi-runtime/psi/tests/suite"
)

const buildTags = "seccomp,netgo,osusergo,urfave_cli_no_docs"

func main() {
	pattern := flag.String("run", "", "run only the tests that match `REGEXP`")
	beside := flag.String("beside", "", "a `COMMAND` to run beside the suites that run alone; what it says follows theirs")
	flag.Parse()
	if err := run(*pattern, strings.Fields(*beside), flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

// run runs the named suites, or all, in the table's order, and a command beside them.
func run(pattern string, beside, names []string) error {
	suites, err := suite.Read("tests/suites.txt")
	if err != nil {
		return err
	}
	if err := complete(suites); err != nil {
		return err
	}
	suites = slices.DeleteFunc(suites, func(s suite.Suite) bool {
		return s.Host == 0 || len(names) > 0 && !slices.Contains(names, s.Name)
	})
	if len(suites) == 0 {
		return fmt.Errorf("no suite of tests/suites.txt is named %s", strings.Join(names, ", "))
	}
	results := make([]result, len(suites))
	runBeside(suites, results, pattern)
	other := startBeside(beside)
	for i, s := range suites {
		if !s.Beside {
			results[i] = measured(s, pattern, os.Stdout)
		}
	}
	var failed []string
	var why bytes.Buffer
	for i, s := range suites {
		r, verdict := results[i], "ok"
		if r.err != nil {
			verdict = r.err.Error()
			failed = append(failed, s.Name)
			fmt.Fprintf(&why, "==> %s: %s\n%s", s.Name, verdict, failures(r.said))
		}
		fmt.Printf("host %-38s %6.1f s of %d s  %s\n", s.Name, r.took.Seconds(), s.Host, verdict)
	}
	if said, err := other(); err != nil {
		failed = append(failed, strings.Join(beside, " "))
		fmt.Fprintf(&why, "==> %s: %v\n%s", strings.Join(beside, " "), err, failures(said))
	}
	if len(failed) > 0 {
		_, _ = why.WriteTo(os.Stdout)
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// result is how a suite went.
type result struct {
	took time.Duration
	said []byte
	err  error
}

func measured(s suite.Suite, pattern string, out io.Writer) result {
	var said bytes.Buffer
	start := time.Now()
	err := runSuite(s, pattern, io.MultiWriter(out, &said))
	return result{time.Since(start), said.Bytes(), err}
}

// maxFailures is how many lines are shown again of a suite that failed.
const maxFailures = 30

// failure matches the first line that `go test`, unittest and the race detector give to a failure.
var failure = regexp.MustCompile(`^\s*--- FAIL: |^(FAIL|ERROR): |^panic: |^WARNING: DATA RACE|^vm .*(FAIL|failed|over its)`)

// failures returns, of what a suite said, each failure's first line and the few that follow it:
// they are shown again at the end, because the end is what a CI shows first.
func failures(said []byte) []byte {
	var shown []byte
	left, lines := 0, 0
	for line := range bytes.Lines(said) {
		if failure.Match(line) {
			left = 4
		}
		if left > 0 && lines < maxFailures {
			shown = append(append(shown, "    "...), line...)
			left, lines = left-1, lines+1
		}
	}
	return shown
}

// lanes is how many suites run beside each other, of those that may.
const lanes = 2

// runBeside runs the suites that may run beside others, the longest first, and shows what
// each said when it has ended.
func runBeside(suites []suite.Suite, results []result, pattern string) {
	var order []int
	for i, s := range suites {
		if s.Beside {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return suites[b].Host - suites[a].Host })
	next := make(chan int, len(order))
	for _, i := range order {
		next <- i
	}
	close(next)
	var showing sync.Mutex
	var wait sync.WaitGroup
	for range lanes {
		wait.Go(func() {
			for i := range next {
				var said bytes.Buffer
				results[i] = measured(suites[i], pattern, &said)
				showing.Lock()
				_, _ = said.WriteTo(os.Stdout)
				showing.Unlock()
			}
		})
	}
	wait.Wait()
}

// startBeside starts a command; what it returns waits for it and shows what it said. The suites
// that run alone leave a processor idle: what takes long and looks at nothing of theirs can use it.
func startBeside(command []string) (wait func() ([]byte, error)) {
	if len(command) == 0 {
		return func() ([]byte, error) { return nil, nil }
	}
	var said bytes.Buffer
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &said, &said
	fmt.Println("==> beside what follows, and shown after it:", strings.Join(command, " "))
	err := cmd.Start()
	return func() ([]byte, error) {
		if err == nil {
			err = cmd.Wait()
		}
		fmt.Println("==>", strings.Join(command, " "))
		_, _ = os.Stdout.Write(said.Bytes())
		return said.Bytes(), err
	}
}

// runSuite runs one suite with its output on out. Go's own -timeout prints every goroutine, so it
// strikes first; the context's limit is for what does not obey.
func runSuite(s suite.Suite, pattern string, out io.Writer) error {
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
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	fmt.Fprintln(out, "==>", strings.Join(args, " "))
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
