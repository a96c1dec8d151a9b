package confine

import _ "embed"

//go:embed psi-init_amd64
var psiInit []byte

// program is psi-init, an ELF executable.
func program() ([]byte, error) { return psiInit, nil }

// python is the digest of a filter, and its program: see IsPython.
//
//go:embed python_amd64.filter
var python []byte
