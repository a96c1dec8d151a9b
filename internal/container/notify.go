package container

import (
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// NotifyName is the name of the socket in NotifyDir.
	NotifyName  = "notify.sock"
	notifyMount = "/run/notify" // where runc's users look for it
)

// withNotify returns a copy of the spec whose program finds the socket that
// somebody will make in dir.
func withNotify(s *specs.Spec, dir string) *specs.Spec {
	out, process := *s, *s.Process
	out.Mounts = append(append([]specs.Mount{}, s.Mounts...), specs.Mount{
		Destination: notifyMount, Source: dir, Type: "bind",
		Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"},
	})
	process.Env = append(append([]string{}, s.Process.Env...), "NOTIFY_SOCKET="+filepath.Join(notifyMount, NotifyName))
	out.Process = &process
	return &out
}

func (e *entry) notifyDir() string { return filepath.Join(e.stateDir(), "notify") }

// NotifyDir is the directory of the host that the container sees as /run/notify; ""
// if it was made without CreateOptions.Notify.
func (c *Container) NotifyDir() string {
	dir := filepath.Join(c.root, c.id, "notify")
	if _, err := os.Lstat(dir); err != nil {
		return ""
	}
	return dir
}

func (c *Container) makeNotifyDir(wanted bool) error {
	if !wanted {
		return nil
	}
	if err := mkdirMode(c.entry.notifyDir(), 0o755); err != nil {
		return fmt.Errorf("making the notify directory of container %s: %w", c.id, err)
	}
	return nil
}
