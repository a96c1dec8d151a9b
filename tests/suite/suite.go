// Package suite reads tests/suites.txt: which suites there are, how long each may take on this
// machine and in the virtual machine, and which of its tests the everyday run takes there.
//
// It is shared by tests/run, which runs the suites here, and tests/vm, which runs them on the
// other kernel. A suite that is not in the table does not run, and tests/run fails when a package
// with tests is missing from it.
package suite

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Suite is one line of the table.
type Suite struct {
	Name     string // a package directory such as "pkg/policy", or "python"
	Host     int    // time limit on this machine in seconds; 0 = does not run here
	VM       int    // time limit in the virtual machine in seconds; 0 = does not run there
	VMEvery  string // regular expression of the tests that every run takes there; "." = all, "-" = none
	VMOnly   bool   // the others cannot run there
	Beside   bool   // on this machine it may run beside others: it does not look at what is left on the machine
	HostArgs []string
}

// Python is the name of the suite that is not a Go package.
const Python = "python"

// Read reads the table.
func Read(path string) ([]Suite, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the table of suites: %w", err)
	}
	defer file.Close()
	var suites []Suite
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 4 {
			return nil, fmt.Errorf("%s:%d: want `suite host-seconds vm-seconds vm-tests [&] [go test flags]`, got %q", path, number, text)
		}
		s := Suite{Name: fields[0], VMEvery: fields[3], HostArgs: fields[4:]}
		if len(s.HostArgs) > 0 && s.HostArgs[0] == "&" {
			s.Beside, s.HostArgs = true, s.HostArgs[1:]
		}
		s.VMEvery, s.VMOnly = strings.CutPrefix(s.VMEvery, "=")
		if s.Host, err = seconds(fields[1]); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		if s.VM, err = seconds(fields[2]); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		suites = append(suites, s)
	}
	return suites, lines.Err()
}

// seconds parses a time limit; "-" is none.
func seconds(text string) (int, error) {
	if text == "-" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("time limit %q: want a number of seconds or -", text)
	}
	return n, nil
}
