// Command gen compiles pkg/bundle's filter for CPython, which every guest of psi's
// own gets, and writes it where package confine embeds it.
package main

import (
	"fmt"
	"os"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
)

func main() {
	if err := generate("python_amd64.filter"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate(file string) error {
	list := bundle.Seccomp()
	program, err := confine.Compile(list)
	if err != nil {
		return err
	}
	digest, err := confine.Digest(list)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(digest[:], program...), 0o644)
}
