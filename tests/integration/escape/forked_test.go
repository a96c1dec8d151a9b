package escape

import (
	"os"
	"path/filepath"
	"testing"
)

// TestForkedGuests makes the attempts on the kernel from guests that a zygote has forked, and
// those to make something of what they have of it.
func TestForkedGuests(t *testing.T) {
	t.Run("confined", func(t *testing.T) {
		watched(t)
		mustHold(t, runClient(t, "forked", "forked", "kernel", "mounts"))
	})
	t.Run("control", func(t *testing.T) {
		module, err := filepath.Abs("../../../internal/container/zygote/zygote_amd64.so")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(module); err != nil {
			t.Fatal(err)
		}
		source := filepath.Join(t.TempDir(), "forked.py")
		var whole []byte
		for _, part := range []string{"testdata/lib.py", "testdata/attempts/forked.py"} {
			data, err := os.ReadFile(part)
			if err != nil {
				t.Fatal(err)
			}
			whole = append(whole, data...)
		}
		write(t, source, string(whole), 0o600)
		mustEscape(t, invoke(t, python, "-I", source, "--control", "module="+module))
	})
}
