package agenttest

import (
	"os/exec"
	"testing"
)

// TestCodec runs the tests of the codec that need Python itself.
func TestCodec(t *testing.T) {
	out, err := exec.Command(python(), "-m", "unittest", "discover", "-s", "../../../rootfs/agent_test").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
