package install

import (
	"bytes"
	"fmt"
)

// ownMark is the first line of a file that is all ours.
const ownMark = "# Written by psi-runtime install; psi-runtime uninstall removes it.\n"

// podmanFile makes `podman run --runtime psi` work. The second list replaces podman's own, so it
// names those of podman's own too.
const podmanFile = ownMark + `[engine]
runtime_supports_json = ["crun", "runc", "kata", "runsc", "krun", "youki", "psi", "psi-runtime"]

[engine.runtimes]
psi = [%q]
`

// crioFile makes the runtime class psi. CRI-O hands the annotations of pods to the runtime itself.
const crioFile = ownMark + `[crio.runtime.runtimes.psi]
runtime_path = %q
runtime_type = "oci"
runtime_root = "/run/psi-crio"
`

// ownFile writes a drop-in file, which must not be somebody else's.
func ownFile(format string) func([]byte, string) ([]byte, error) {
	return func(before []byte, runtime string) ([]byte, error) {
		if _, err := removeOwnFile(before); err != nil {
			return nil, err
		}
		return fmt.Appendf(nil, format, runtime), nil
	}
}

func removeOwnFile(before []byte) ([]byte, error) {
	if before != nil && !bytes.HasPrefix(before, []byte(ownMark)) {
		return nil, fmt.Errorf("the file was not written by psi-runtime install (its first line would be %q)", ownMark)
	}
	return nil, nil
}
