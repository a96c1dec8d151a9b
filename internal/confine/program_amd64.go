package confine

import _ "embed"

//go:embed psi-init_amd64
var psiInit []byte

// program is psi-init, an ELF executable.
func program() ([]byte, error) { return psiInit, nil }
