//go:build !amd64

package confine

import (
	"embed"
	"fmt"
	"runtime"
)

// program: psi-init.c makes system calls in amd64's way only.
func program() ([]byte, error) {
	return nil, fmt.Errorf("there is no psi-init for %s yet: remove what needs it from the policy (seccomp: python, fs rules below an engine's mount)", runtime.GOARCH)
}

// ready: no filter is compiled ahead for this architecture.
var ready embed.FS
