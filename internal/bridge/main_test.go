package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// engine is a podman with storage of its own and a guest image in it, made once.
var engine struct {
	podman  []string // with global flags
	runtime string   // psi-runtime
	skip    string   // why there is none
}

// The test binary plays the bridge and its keeper, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case KeepCommand:
			os.Exit(said(0, Keep(os.Stdin, os.Args[2], os.Args[3:])))
		case "relay":
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
			code, err := Relay(ctx, RelayOptions{Options: options(os.Args[2:]...), Grace: time.Second, Stdin: os.Stdin, Stdout: os.Stdout})
			stop()
			os.Exit(said(code, err))
		}
	}
	os.Exit(testMain(m))
}

func said(code int, err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func options(words ...string) Options {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	return Options{Command: words, Program: "/proc/self/exe", Version: "test", Log: log}
}

func testMain(m *testing.M) int {
	if _, err := exec.LookPath("podman"); err != nil {
		if os.Getenv("PSI_TEST_VM") == "" {
			fmt.Println("podman is missing: run `make setup`")
			return 1
		}
		engine.skip = "the test machine has no podman: engines are tested on the host"
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "psi-bridge-test-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	runtime := os.Getenv("PSI_RUNTIME")
	if runtime == "" {
		runtime = "../../bin/psi-runtime"
	}
	if runtime, err = filepath.Abs(runtime); err == nil {
		_, err = os.Stat(runtime)
	}
	if err != nil {
		fmt.Println("the tests need the built program: run `make build`:", err)
		return 1
	}
	engine.runtime = runtime
	engine.podman = []string{"podman", "--root", dir + "/storage", "--runroot", dir + "/run", "--storage-driver", "vfs",
		"--cgroup-manager", "cgroupfs", "--runtime", runtime}
	image := filepath.Join(dir, "image.tar")
	err = exec.Command(runtime, "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "oci", "--output", image).Run()
	if err == nil {
		_, err = podman("load", "--quiet", "--input", image)
	}
	if err != nil {
		fmt.Println("making a guest image:", err)
		return 1
	}
	defer func() {
		if _, err := podman("system", "reset", "--force"); err != nil {
			fmt.Println(err)
		}
	}()
	return m.Run()
}

// podman asks the tests' podman.
func podman(words ...string) (string, error) {
	out, err := exec.Command(engine.podman[0], append(engine.podman[1:len(engine.podman):len(engine.podman)], words...)...).Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("podman %s: %w: %s", words[0], err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// runCommand is the command that runs a guest.
func runCommand(t *testing.T, flags ...string) []string {
	t.Helper()
	if engine.skip != "" {
		t.Skip(engine.skip)
	}
	// Hard limits cannot be raised on every test machine; podman would try.
	words := append(append([]string{}, engine.podman...), "run", "-i", "--rm", "--network", "none", "--ulimit", "nproc=1024:1024")
	return append(append(words, flags...), "localhost/psi-python:3.11")
}

// nofile goes with a command that is given no policy.
const nofile = "--ulimit=nofile=1024:1024"

// nothingRuns waits until podman knows no container.
func nothingRuns(t *testing.T) {
	t.Helper()
	var left string
	for range 100 {
		var err error
		if left, err = podman("ps", "--all", "--quiet"); err != nil {
			t.Fatal(err)
		}
		if left == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("containers are left: %s", left)
}
