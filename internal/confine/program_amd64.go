package confine

import "embed"

//go:embed psi-init_amd64
var psiInit []byte

// program is psi-init, an ELF executable.
func program() ([]byte, error) { return psiInit, nil }

// ready are filters that gen compiled: see Ready.
//
//go:embed filters
var ready embed.FS
