package escape

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stranger is a user of the host that is not the client.
const stranger = 12345

// landscape makes the directories that views.py explains.
func landscape(t *testing.T) string {
	t.Helper()
	base := publicDir(t)
	at := func(name string) string { return filepath.Join(base, name) }
	write(t, at("outside/secret"), "the secret of the host", 0o644)
	write(t, at("read/plain"), "plain", 0o644)
	write(t, at("read/sub/file"), "plain", 0o644)
	write(t, at("read/moving/deep/file"), "plain", 0o644)
	write(t, at("special/plain"), "plain", 0o644)
	write(t, at("denied/plain"), "plain", 0o644)
	write(t, at("denied/sub/file"), "plain", 0o644)
	write(t, at("denied/key"), "the secret of the host", 0o644)
	for _, file := range []struct {
		name string
		mode os.FileMode
	}{{"read/other-0600", 0o600}, {"read/other-0640", 0o640}, {"write/other-0644", 0o644}} {
		write(t, at(file.name), "the secret of a stranger", file.mode)
		if err := os.Chown(at(file.name), stranger, stranger); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"absolute-link": at("outside/secret"), "relative-link": "../outside/secret", "directory-link": "../outside", "proc-link": "/proc/1/root" + at("outside"),
	} {
		if err := os.Symlink(target, at("read/"+link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(at("special/fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("special/socket"))
	if err == nil {
		err = errors.Join(os.Chmod(at("special/fifo"), 0o666), os.Chmod(at("special/socket"), 0o666))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	reader, err := os.OpenFile(at("special/fifo"), os.O_RDWR, 0) // somebody reads: opening it for writing would work
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	go moveAway(t, base)
	return base
}

// moveAway takes read/moving out of the view as soon as the guest is in it.
func moveAway(t *testing.T, base string) {
	ready := filepath.Join(base, "write/ready-to-move")
	for t.Context().Err() == nil {
		if _, err := os.Stat(ready); err == nil {
			os.Rename(filepath.Join(base, "read/moving"), filepath.Join(base, "outside/moving"))
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func viewPolicy(base string) string {
	quoted := func(name string) string {
		text, _ := json.Marshal(filepath.Join(base, name))
		return string(text)
	}
	return "fs:\n  - " + quoted("read") + "\n  - write: " + quoted("write") + "\n  - " + quoted("special") + "\n  - " + quoted("denied/**") + "\n  - deny: " + quoted("denied/key") + "\n"
}

func TestViewsHold(t *testing.T) {
	t.Run("confined", func(t *testing.T) {
		watched(t)
		base := landscape(t)
		mustHold(t, run(t, compile(t, viewPolicy(base), script(t, "views"), "base="+base)))
		onTheHost(t, base)
	})
	t.Run("control", func(t *testing.T) {
		watched(t)
		base := landscape(t)
		bundle := compile(t, viewPolicy(base), script(t, "views"), "base="+base)
		edit(t, bundle, func(c config) {
			loosen("pid", "mount", "network", "ipc", "uts")(c)
			addMount(c, base, base, "bind", "bind", "rw")
		})
		mustEscape(t, run(t, bundle))
	})
}

// onTheHost looks at what the guest left.
func onTheHost(t *testing.T, base string) {
	t.Helper()
	for name, want := range map[string]string{"read/plain": "plain", "write/made": "made by the guest", "write/other-0644": "the secret of a stranger"} {
		if got, err := os.ReadFile(filepath.Join(base, name)); err != nil || string(got) != want {
			t.Errorf("%s on the host holds %q, %v; want %q", name, got, err, want)
		}
	}
	err := filepath.WalkDir(base, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode(); mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 && !strings.Contains(path, "/special/") {
			t.Errorf("ESCAPED: the guest left %s on the host: %v", path, mode)
		}
		if strings.Contains(path, "/read/") && info.ModTime().Before(time.Now().Add(-time.Hour)) {
			t.Errorf("%s has a changed time", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
