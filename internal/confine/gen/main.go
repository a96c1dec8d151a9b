// Command gen compiles pkg/bundle's filters, one of which every guest of psi's own gets,
// and writes them where package confine embeds them.
package main

import (
	"fmt"
	"os"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
)

func main() {
	if err := generate("filters"); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate(dir string) error {
	for name, filter := range bundle.SeccompVariants() {
		program, err := confine.Compile(filter)
		if err != nil {
			return err
		}
		digest, err := confine.Digest(filter)
		if err != nil {
			return err
		}
		if err := os.WriteFile(dir+"/"+name, append(digest[:], program...), 0o644); err != nil {
			return err
		}
	}
	return nil
}
