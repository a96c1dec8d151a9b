package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/tests/suite"
)

// step is one command in the guest; tests/vm/guest reads the same form.
type step struct {
	Name    string   `json:"name"`
	Dir     string   `json:"dir"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Seconds int      `json:"seconds"`

	suite string
}

// source is where the checkout lies in the guest.
const source = "/src"

// planSteps turns the table into commands. Named suites run whole or as far as pattern says; with
// no names, every suite runs the tests that the table gives the everyday run, and with the single
// name "all", all of them that can run there.
func planSteps(names []string, pattern string) ([]step, error) {
	suites, err := suite.Read("tests/suites.txt")
	if err != nil {
		return nil, err
	}
	all := slices.Equal(names, []string{"all"})
	var steps []step
	for _, s := range suites {
		named := slices.Contains(names, s.Name)
		run := pattern
		if run == "" && (!named && !all || s.VMOnly) {
			run = s.VMEvery
		}
		if s.VM == 0 || run == "-" || len(names) > 0 && !named && !all {
			continue
		}
		steps = append(steps, suiteStep(s, run))
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("no suite of tests/suites.txt runs in the machine for %q", strings.Join(names, " "))
	}
	return steps, nil
}

// suiteStep is the command of one suite.
func suiteStep(s suite.Suite, run string) step {
	made := step{Name: s.Name, Dir: filepath.Join(source, s.Name), Seconds: s.VM, suite: s.Name, Env: []string{
		"PSI_SHIM=" + source + "/bin/psi-shim", "PSI_ROOTFS=" + source + "/build/rootfs", "PSI_RUNTIME=" + source + "/bin/psi-runtime",
	}}
	if s.Name == suite.Python {
		made.Args = []string{"/usr/bin/python3.11", "-m", "unittest", "discover", "-v", "-s", "tests", "-t", "."}
		if run != "" && run != "." {
			made.Args = append(made.Args, "-k", run)
		}
		return made
	}
	made.Args = []string{testBinary(s.Name), "-test.v", "-test.timeout", fmt.Sprintf("%ds", s.VM)}
	if run != "" {
		made.Args = append(made.Args, "-test.run", run)
	}
	return made
}

// testBinary is where a package's compiled tests lie in the guest.
func testBinary(name string) string {
	return source + "/build/tests/" + strings.ReplaceAll(name, "/", "-") + ".test"
}
