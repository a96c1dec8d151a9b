package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// Images say where the images of a checkpoint are, and how criu makes or reads
// them. The names are those of criu's own options.
type Images struct {
	Dir     string // directory of the images
	WorkDir string // directory of criu's logs; "" is Dir
	Parent  string // directory of an earlier pre-dump, relative to Dir

	LeaveRunning bool // go on running after the checkpoint
	PreDump      bool // memory only; the container goes on running
	AutoDedup    bool // drop pages from the parent images that newer ones replace

	TCPEstablished, TCPSkipInFlight bool
	ExtUnixSockets, FileLocks       bool
	ShellJob, LinkRemap             bool

	LazyPages  bool   // restore memory on demand, from a page server
	StatusFD   int    // gets a zero byte when the lazy page server is ready; -1 is none
	PageServer string // address to send memory to; "" is none
	PagePort   int32

	ManageCgroupsMode           string // soft, full, strict, ignore; "" is criu's default
	LSMProfile, LSMMountContext string
}

// errNotRestorable explains what a checkpoint cannot hold.
var errNotRestorable = errors.New("a restored container would run without its policy and without ids of its own: bundles with io.psi annotations cannot be checkpointed or restored")

// Checkpoint writes a running or paused container to images with criu. Unless it
// is to go on running, the container is then deleted.
func (c *Container) Checkpoint(i Images) error {
	status, err := c.currentStatus()
	if err != nil {
		return err
	}
	if status == libcontainer.Created || status == libcontainer.Stopped {
		return fmt.Errorf("container %s cannot be checkpointed in %s state", c.id, status)
	}
	if ofPsi(c.Annotations()) {
		return fmt.Errorf("container %s: %w", c.id, errNotRestorable)
	}
	if err := os.MkdirAll(i.Dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of the images: %w", err)
	}
	options, err := i.criu()
	if err != nil {
		return err
	}
	if c.forked != nil {
		return errForked
	}
	if err := c.lc.Checkpoint(options); err != nil {
		return fmt.Errorf("checkpointing container %s: %w", c.id, err)
	}
	if i.LeaveRunning || i.PreDump {
		return nil
	}
	return c.Delete(true)
}

// Restore makes a container of a bundle and of images that Checkpoint wrote. Its
// processes run when it returns.
func Restore(ctx context.Context, o CreateOptions, i Images) (*Container, error) {
	if o.Spec != nil && ofPsi(o.Spec.Annotations) {
		return nil, fmt.Errorf("container %s: %w", o.ID, errNotRestorable)
	}
	options, err := i.criu()
	if err != nil {
		return nil, err
	}
	return create(ctx, o, func(c *Container, o *CreateOptions, undo *undoStack) error {
		return c.restoreInit(o, options, undo)
	})
}

// ofPsi reports whether a bundle needs what only psi's own create can give.
func ofPsi(annotations map[string]string) bool {
	return annotations[AnnotationPolicy] != "" || annotations[annotationIDs] != ""
}

// restoreInit has criu restore the processes.
func (c *Container) restoreInit(o *CreateOptions, options *libcontainer.CriuOpts, undo *undoStack) error {
	p, err := newProcess(c.spec.Process)
	if err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	p.Init = true
	setLevel(p, o.LogLevel, false)
	if err := c.setIO(p, o.Stdin, o.Stdout, o.Stderr); err != nil {
		return err
	}
	p.ExtraFiles, p.ConsoleSocket = o.ExtraFiles, o.ConsoleSocket
	if err := c.lc.Restore(p, options); err != nil {
		return &GuestError{ID: c.id, Err: err}
	}
	c.process = p
	c.started.Store(true)
	undo.add(c.abort)
	return c.pinInit(p)
}

func (i *Images) criu() (*libcontainer.CriuOpts, error) {
	if i.Parent != "" {
		if filepath.IsAbs(i.Parent) {
			return nil, errors.New("--parent-path must be relative")
		}
		if st, err := os.Stat(filepath.Join(i.Dir, i.Parent)); err != nil {
			return nil, fmt.Errorf("invalid --parent-path: %w", err)
		} else if !st.IsDir() {
			return nil, fmt.Errorf("invalid --parent-path: %w", &os.PathError{Op: "stat", Path: i.Parent, Err: unix.ENOTDIR})
		}
	}
	return &libcontainer.CriuOpts{
		ImagesDirectory: i.Dir, WorkDirectory: i.WorkDir, ParentImage: i.Parent,
		LeaveRunning: i.LeaveRunning, PreDump: i.PreDump, AutoDedup: i.AutoDedup,
		TcpEstablished: i.TCPEstablished, TcpSkipInFlight: i.TCPSkipInFlight,
		ExternalUnixConnections: i.ExtUnixSockets, FileLocks: i.FileLocks,
		ShellJob: i.ShellJob, LinkRemap: i.LinkRemap,
		LazyPages: i.LazyPages, StatusFd: i.StatusFD,
		PageServer:        libcontainer.CriuPageServerInfo{Address: i.PageServer, Port: i.PagePort},
		ManageCgroupsMode: i.ManageCgroupsMode, LsmProfile: i.LSMProfile, LsmMountContext: i.LSMMountContext,
		// Network devices and their settings are not the runtime's to restore.
		EmptyNs: unix.CLONE_NEWNET,
	}, nil
}
