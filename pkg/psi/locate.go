package psi

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// defaultSocket is that of the machine's shared supervisor.
const defaultSocket = "/run/psi/psi.sock"

// defaultRootfs is where `make install` builds the root file system of guests.
const defaultRootfs = "/var/lib/psi/rootfs"

// findShim finds psi-shim: Options.Shim, $PSI_SHIM, PATH, /usr/local/bin.
func findShim(o Options) (string, error) {
	for _, given := range []string{o.Shim, os.Getenv("PSI_SHIM")} {
		if given != "" {
			return filepath.Abs(given)
		}
	}
	if path, err := exec.LookPath("psi-shim"); err == nil {
		return filepath.Abs(path)
	}
	const installed = "/usr/local/bin/psi-shim"
	if _, err := os.Stat(installed); err == nil {
		return installed, nil
	}
	return "", &SandboxError{Text: "psi-shim was not found (PATH, /usr/local/bin): install psi, or set Options.Shim or PSI_SHIM to the program"}
}

// findRootfs finds the root file system of guests: Options.Rootfs, $PSI_ROOTFS, defaultRootfs.
func findRootfs(o Options) (string, error) {
	dir := defaultRootfs
	for _, given := range []string{os.Getenv("PSI_ROOTFS"), o.Rootfs} {
		if given != "" {
			dir = given
		}
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "usr/lib/psi/rootfs.json"))
	}
	if err != nil {
		return "", &SandboxError{Text: fmt.Sprintf("no root file system of psi at %s: run `psi-runtime rootfs build -o %[1]s`, or set Options.Rootfs or PSI_ROOTFS", dir)}
	}
	return dir, nil
}

// findSocket says which shared supervisor to use: Options.Socket, $PSI_SOCKET, or, for who
// is not root, the machine's. "" starts one of our own, or a bridge.
func findSocket(o Options) (string, error) {
	switch path := os.Getenv("PSI_SOCKET"); {
	case len(o.Engine) > 0:
		return "", nil
	case o.Socket != "":
		return o.Socket, nil
	case path != "":
		return path, nil
	case os.Geteuid() == 0:
		return "", nil
	}
	if _, err := os.Stat(defaultSocket); errors.Is(err, os.ErrNotExist) {
		return "", &SandboxError{Text: "starting containers takes root, and there is no shared supervisor: have root run `psi-shim serve --socket " +
			defaultSocket + "` and add this user to the group psi, or run this program as root"}
	}
	return defaultSocket, nil
}
