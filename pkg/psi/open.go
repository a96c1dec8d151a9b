package psi

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/control"
)

// Options say which supervisor a client has. The zero value is right for root on a machine
// where psi is installed, and for members of the group of a shared supervisor.
type Options struct {
	// Socket is that of a shared supervisor. "" means $PSI_SOCKET; or, for root, a
	// supervisor of this client's own; or else /run/psi/psi.sock.
	Socket string
	// Engine has guests run by an engine's command, such as {"podman"}, or any command
	// whose stdin and stdout are a guest's: see docs/bridge.md.
	Engine []string
	Shim   string   // psi-shim; "" means $PSI_SHIM, PATH, /usr/local/bin
	Rootfs string   // of guests; "" means $PSI_ROOTFS, /var/lib/psi/rootfs
	Stderr *os.File // for the log of a supervisor of our own; nil means os.Stderr
}

// name is what this client calls itself.
const name = "pkg/psi 0.1.0"

// leave is how long a supervisor of our own may take to end.
const leave = 10 * time.Second

// Open starts or finds the supervisor and says hello to it. Close the client.
func Open(ctx context.Context, o Options) (*Client, error) {
	c := &Client{
		names: make(map[string]*Sandbox), guests: make(map[string]*Sandbox),
		handles: make(map[*Sandbox]bool), watchers: make(map[*watcher]bool), read: make(chan struct{}), reaped: make(chan struct{}),
	}
	path, err := findSocket(o)
	if err != nil {
		return nil, err
	}
	var conn *net.UnixConn
	if path != "" {
		conn, err = dial(ctx, path)
		close(c.reaped)
	} else {
		conn, err = c.start(o)
	}
	if err != nil {
		return nil, err
	}
	c.link = newLink(conn)
	go c.readAll()
	if _, err := c.link.ask(ctx, "", "hello", map[string]any{"version": control.Version, "client": name}); err != nil {
		c.Close()
		if c.process != nil && c.process.ProcessState != nil && !c.process.ProcessState.Success() {
			err = &SandboxError{Cause: control.CauseSupervisor, Text: fmt.Sprintf("psi-shim was not ready (%v): what it wrote to stderr says why", c.process.ProcessState)}
		}
		return nil, err
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &SandboxError{Text: fmt.Sprintf("connecting to the supervisor: %v; root starts it with `psi-shim serve --socket %s`, for the members of the group psi", err, path)}
	}
	return conn.(*net.UnixConn), nil
}

// start starts a supervisor, or a bridge, of this client's own. It ends with this process.
func (c *Client) start(o Options) (*net.UnixConn, error) {
	shim, err := findShim(o)
	if err != nil {
		return nil, err
	}
	args := append([]string{"bridge", "--fd", "3", "--"}, o.Engine...)
	if len(o.Engine) == 0 {
		rootfs, err := findRootfs(o)
		if err != nil {
			return nil, err
		}
		args = []string{"serve", "--fd", "3", "--rootfs", rootfs}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &SandboxError{Text: fmt.Sprintf("making a control socket: %v", err)}
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer ours.Close()
	defer theirs.Close()
	c.process = exec.Command(shim, args...)
	c.process.Dir, c.process.Stderr, c.process.ExtraFiles = "/", o.Stderr, []*os.File{theirs}
	if o.Stderr == nil {
		c.process.Stderr = os.Stderr
	}
	c.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ^C at the terminal is for us
	if err := c.process.Start(); err != nil {
		return nil, &SandboxError{Text: fmt.Sprintf("starting %s: %v", shim, err)}
	}
	go func() {
		defer close(c.reaped)
		_ = c.process.Wait() // ProcessState says it
	}()
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = c.process.Process.Kill()
		<-c.reaped
		return nil, &SandboxError{Text: fmt.Sprintf("opening the control socket: %v", err)}
	}
	return conn.(*net.UnixConn), nil
}
