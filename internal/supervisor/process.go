package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config is what the inner process is told by the outer one.
type Config struct {
	Socket    string      `json:"socket,omitempty"` // path of a shared supervisor's socket; "" is embedded
	Group     string      `json:"group,omitempty"`  // group that may use Socket
	Rootfs    string      `json:"rootfs,omitempty"` // absolute
	RunDir    string      `json:"run_dir,omitempty"`
	MaxGuests int         `json:"max_guests,omitempty"`
	Pool      PoolOptions `json:"pool"`
	LogLevel  string      `json:"log_level,omitempty"`
	Version   string      `json:"version"` // "psi-shim 0.1.0"
	PID       int         `json:"pid"`     // of the outer process
}

// SuperviseCommand is the command word with which the outer process starts the inner
// one. Its only argument is a Config as JSON.
const SuperviseCommand = "supervise"

// The inner process's descriptors.
const (
	fdParent  = 3 // pidfd of the outer process
	fdProgram = 4 // the sealed program
	fdControl = 5 // embedded: the control socket
	fdClient  = 6 // embedded: pidfd of the client
)

// Launch is the outer process: it starts the inner one from a sealed copy of this
// program, in its own pid and mount namespace, and waits for it. control is an
// embedded supervisor's socket, nil for a shared one. The result is the inner
// process's exit code.
//
// The caller must have locked the goroutine to the process's main thread: the parent
// death signal fires when the thread that started the child ends.
func Launch(config Config, control *os.File) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("starting the supervisor: only root can make guests; as another user, connect to a shared supervisor's socket (psi-shim serve --socket, started by root)")
	}
	config.PID = os.Getpid()
	argument, err := json.Marshal(config)
	if err != nil {
		return 0, fmt.Errorf("encoding the supervisor's configuration: %w", err)
	}
	program, err := sealedProgram()
	if err != nil {
		return 0, err
	}
	defer program.Close()
	self, err := openProcess(os.Getpid())
	if err != nil {
		return 0, err
	}
	defer self.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/" + strconv.Itoa(fdProgram), Args: []string{os.Args[0], SuperviseCommand, string(argument)},
		Stdin: nil, Stdout: os.Stderr, Stderr: os.Stderr, Dir: "/", ExtraFiles: []*os.File{self, program},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
		},
	}
	if control != nil {
		client, err := clientProcess(control)
		if err != nil {
			return 0, fmt.Errorf("finding the client at the control socket, descriptor %d: %w", control.Fd(), err)
		}
		defer client.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, control, client)
	}
	return runForwarding(cmd, control)
}

// runForwarding runs the inner process and passes on to it what asks it to end.
func runForwarding(cmd *exec.Cmd, control *os.File) (int, error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting the supervisor in its namespaces: %w", err)
	}
	if control != nil {
		_ = control.Close() // the client's end must see the inner process's end
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		if failed.ExitCode() > 0 {
			return failed.ExitCode(), nil
		}
		return 0, fmt.Errorf("the supervisor was ended: %w", failed)
	}
	return 0, err
}

// sealedProgram copies this program into memory that nobody can change any more. A
// guest's init process is this program; sealed, no guest can write to what the
// supervisor runs (CVE-2019-5736), and libcontainer need not copy it per guest.
func sealedProgram() (_ *os.File, err error) {
	own, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("opening this program: %w", err)
	}
	defer own.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("psi-shim", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 every memfd can be executed
		fd, err = unix.MemfdCreate("psi-shim", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("making memory for this program: %w", err)
	}
	sealed := os.NewFile(uintptr(fd), "psi-shim")
	if _, err = io.Copy(sealed, own); err == nil {
		err = sealed.Chmod(0o511)
	}
	if err == nil {
		_, err = unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		_ = sealed.Close()
		return nil, fmt.Errorf("copying this program: %w", err)
	}
	return sealed, nil
}

// clientProcess opens a pidfd of the process that made the control socket. Where the
// kernel cannot open it by the socket, the process id could have been reused; a
// process that was there before this one and still is, is the one.
func clientProcess(control *os.File) (*os.File, error) {
	fd := int(control.Fd())
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("it must be an inherited end of a unix socket pair: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || kind != unix.SOCK_STREAM {
		return nil, errors.New("it must be an inherited end of a unix socket pair of type SOCK_STREAM")
	}
	process, err := peerProcess(fd)
	if process != nil || err != nil {
		return process, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("asking for peer credentials: %w", err)
	}
	if cred.Pid == 0 {
		return nil, errors.New("the client is in another pid namespace: start the supervisor where the client runs")
	}
	process, err = openProcess(int(cred.Pid))
	if err != nil {
		return nil, fmt.Errorf("opening the client's process: %w", err)
	}
	theirs, err := startTime(int(cred.Pid))
	ours, ourErr := startTime(os.Getpid())
	if err = errors.Join(err, ourErr); err == nil && theirs > ours {
		err = errors.New("it has ended and another process has its id")
	}
	if err != nil {
		_ = process.Close()
		return nil, fmt.Errorf("checking the client's process %d: %w", cred.Pid, err)
	}
	return process, nil
}

func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// LockMainThread keeps the calling goroutine on the thread it runs on. main calls it
// first: threads that took a client's identity end with their goroutine, and the
// process's main thread must not be one of them.
func LockMainThread() { runtime.LockOSThread() }
