// Command psi-runtime is an OCI runtime on libcontainer. It runs any OCI bundle as
// runc does, with runc's flags, exit codes and messages, so that podman, containerd
// and docker can use it in runc's place. For a bundle that carries a policy
// (annotation io.psi.policy) it also enforces what only the host can: endpoints,
// clocks, and the end of a guest that runs out of memory.
//
// main only wires: each command parses its flags into a plain struct at once and
// makes one call into internal/container, pkg/bundle or rootfs.
//
//go:debug containermaxprocs=0
package main

import (
	"os"

	"github.com/psi-runtime/psi/internal/container"
)

func main() {
	container.MaybeInit()
	// The first thread is kept for this goroutine (see package container). It only
	// waits, so that no other has to be woken and put to sleep at each of its steps.
	code := make(chan int)
	go func() { code <- execute(os.Args) }()
	os.Exit(<-code)
}
