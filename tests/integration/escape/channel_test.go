package escape

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const python = "/usr/bin/python3.11"

// TestChannel lets hostile guests attack the Python client, one attack each.
func TestChannel(t *testing.T) { client(t, "channel") }

// TestClients lets them do it over time, and to each other.
func TestClients(t *testing.T) { client(t, "clients") }

// TestSharedSupervisor lets another user of the host ask for what is not theirs.
func TestSharedSupervisor(t *testing.T) { client(t, "shared") }

// client runs a program of testdata/client, and its control.
func client(t *testing.T, name string) {
	t.Helper()
	t.Run("confined", func(t *testing.T) {
		watched(t)
		mustHold(t, runClient(t, name))
	})
	t.Run("control", func(t *testing.T) {
		watched(t)
		mustEscape(t, runClient(t, name, "--control"))
	})
}

func runClient(t *testing.T, name string, args ...string) result {
	t.Helper()
	library, err := filepath.Abs("../../../python")
	if err != nil {
		t.Fatal(err)
	}
	patience := "1"
	if os.Getenv("PSI_TEST_VM") != "" {
		patience = "4" // the emulated machine is slower
	}
	return invokeWith(t, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "PYTHONPATH="+library, "PYTHONDONTWRITEBYTECODE=1",
			"PSI_SHIM="+shim(t), "PSI_ROOTFS="+rootfs(t), "PSI_ESCAPE_PATIENCE="+patience)
	}, python, append([]string{filepath.Join("testdata/client", name+".py")}, args...)...)
}
