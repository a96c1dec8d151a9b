package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Options say what a bridge runs.
type Options struct {
	Command []string // the engine's command; the one word "podman" is DefaultCommand
	Program string   // this program, to start the keeper from
	Version string   // "psi-shim 0.1.0"
	Log     logrus.FieldLogger
}

// Bridge starts guests by an engine's command. Its methods may be called from any goroutine.
type Bridge struct {
	opts    Options
	command command
	dir     string // of the files in which engines write container ids
	keeper  *exec.Cmd
	hold    *os.File    // the keeper acts when this is closed
	starts  chan func() // run by the one thread whose end kills the engine's commands
	splits  func() (bool, error)
	tidying sync.WaitGroup // removals of containers that nobody waits for
}

// New checks the command and makes a bridge. Close it.
func New(o Options) (_ *Bridge, err error) {
	words := o.Command
	if len(words) == 1 && words[0] == "podman" {
		words = DefaultCommand()
	}
	b := &Bridge{opts: o, starts: make(chan func())}
	if b.command, err = parseCommand(words); err != nil {
		return nil, err
	}
	b.splits = sync.OnceValues(b.annotationSplits)
	if b.dir, err = os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "psi-bridge-"); err != nil {
		return nil, fmt.Errorf("making a directory for container ids: %w", err)
	}
	if b.command.known() {
		if err = b.startKeeper(); err != nil {
			return nil, errors.Join(err, os.RemoveAll(b.dir))
		}
	}
	go b.starter()
	return b, nil
}

// starter starts the commands. The kernel kills them when the thread that started them
// ends, so it is one that lives as long as this process has use for them.
func (b *Bridge) starter() {
	runtime.LockOSThread()
	for start := range b.starts {
		start()
	}
}

// Close ends the bridge; its guests have ended.
func (b *Bridge) Close() error {
	b.tidying.Wait()
	close(b.starts)
	err := os.RemoveAll(b.dir)
	if b.keeper != nil {
		err = errors.Join(err, b.hold.Close(), b.keeper.Wait())
	}
	return err
}

// startKeeper starts the process that outlives a bridge that is killed, see [Keep].
func (b *Bridge) startKeeper() error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the keeper: %w", err)
	}
	defer read.Close()
	args := append([]string{KeepCommand, b.dir}, b.command.words[:b.command.run]...)
	b.keeper = exec.Command(b.opts.Program, args...)
	b.keeper.Stdin, b.keeper.Stderr, b.keeper.Dir = read, os.Stderr, "/"
	b.keeper.SysProcAttr = ownSession()
	if err := b.keeper.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting the keeper: %w", err), write.Close())
	}
	b.hold = write
	return nil
}

// KeepCommand is the command word with which a bridge starts its keeper. Its arguments
// are a directory and an engine's program with its global flags.
const KeepCommand = "keep"

// Keep waits until the bridge at the other end of stdin has ended. One that ended by itself
// has removed the directory; of one that was killed, every container whose id an engine
// wrote into the directory is removed.
func Keep(stdin *os.File, dir string, engine []string) error {
	var buf [1]byte
	for {
		if _, err := stdin.Read(buf[:]); err != nil {
			break
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.cid"))
	if err != nil || len(engine) == 0 {
		return fmt.Errorf("keeping containers: nothing is known of %s: %w", dir, err)
	}
	c := command{words: engine, run: len(engine)}
	var errs []error
	for _, file := range files {
		id, err := os.ReadFile(file)
		if err == nil && len(id) > 0 {
			_, err = c.ask(c.remove(strings.TrimSpace(string(id)))...)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// annotationSplits asks podman how it reads the value of --annotation: older ones as a line
// of comma-separated values, newer ones as it stands.
func (b *Bridge) annotationSplits() (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), enginePatience)
	defer cancel()
	help, err := exec.CommandContext(ctx, b.command.words[0], "run", "--help").Output()
	if err != nil {
		return false, fmt.Errorf("asking %s for its flags: %w", b.command.engine(), err)
	}
	for _, line := range strings.Split(string(help), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "--annotation" {
			return fields[1] == "strings", nil
		}
	}
	return false, fmt.Errorf("%s run has no flag --annotation: it cannot be given a policy", b.command.engine())
}

// remove has the engine remove a container, beside everything else.
func (b *Bridge) remove(id string) {
	b.tidying.Add(1)
	go func() {
		defer b.tidying.Done()
		if _, err := b.command.ask(b.command.remove(id)...); err != nil {
			b.opts.Log.WithError(err).WithField("container", id).Error("removing a container")
		}
	}()
}

// endPatience is how long an engine's command may take to end when its container has.
const endPatience = 10 * time.Second
