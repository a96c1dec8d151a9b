package conformance

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// race is the kind of an expectation whose program passes or fails by chance, and must pass when it
// is run slowly.
const race = "race"

// expectation says why a program cannot pass, or not as it is; its zero value is that it must.
type expectation struct {
	kind   string // machine, suite or race
	reason string
}

// readExpectations reads the lines of expect.txt that hold in a place (host or vm):
//
//	program  place  kind  reason…
func readExpectations(path, place string) (map[string]expectation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	expected := map[string]expectation{}
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		fields := strings.Fields(text)
		if len(fields) < 4 {
			return nil, fmt.Errorf("%s:%d: want `program place kind reason`, got %q", path, number, text)
		}
		program, where, kind := fields[0], fields[1], fields[2]
		if where != "host" && where != "vm" && where != "both" {
			return nil, fmt.Errorf("%s:%d: place %q: it is host, vm or both", path, number, where)
		}
		if kind != "machine" && kind != "suite" && kind != race {
			return nil, fmt.Errorf("%s:%d: kind %q: it is machine, suite or race", path, number, kind)
		}
		if where == "both" || where == place {
			expected[program] = expectation{kind, strings.Join(fields[3:], " ")}
		}
	}
	return expected, lines.Err()
}
