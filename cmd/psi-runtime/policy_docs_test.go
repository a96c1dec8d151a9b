package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPolicyReference runs every command of docs/policy.md in a directory with
// its named examples, and compares what it prints with what the page shows.
func TestPolicyReference(t *testing.T) {
	data, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	ran := 0
	for i, block := range strings.Split(string(data), "\n```") {
		head, body, _ := strings.Cut(strings.TrimPrefix(block, "\n```"), "\n")
		language, name, _ := strings.Cut(head, " ")
		switch {
		case i%2 == 0: // between two blocks
		case language == "yaml" && name != "":
			if err := os.WriteFile(filepath.Base(name), []byte(body+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		case language == "console":
			for _, command := range strings.Split("\n"+body, "\n$ ")[1:] {
				ran++
				line, want, _ := strings.Cut(command+"\n", "\n")
				stdin := ""
				if echoed, rest, piped := strings.Cut(line, " | "); piped {
					stdin, line = strings.Trim(strings.TrimPrefix(echoed, "echo "), "'"), rest
				}
				words := strings.Fields(strings.TrimPrefix(line, "psi-runtime policy "))
				if out, errs, _ := psiPolicy(t, stdin, words...); out+errs != want {
					t.Errorf("%s prints\n%s%s\nnot\n%s", line, out, errs, want)
				}
			}
		}
	}
	if ran < 7 {
		t.Errorf("found only %d commands", ran)
	}
}
