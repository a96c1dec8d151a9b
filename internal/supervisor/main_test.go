package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/rootfs"
)

// testRoot is the root file system of the guests in these tests, built once.
var testRoot string

// The test binary plays every process: `go test` itself is the client, and runs
// itself again as the outer process and, through Launch, as the inner one.
func TestMain(m *testing.M) {
	container.MaybeInit()
	LockMainThread()
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "outer":
			os.Exit(outerMain(os.Args[2]))
		case SuperviseCommand:
			os.Exit(innerMain(os.Args[2]))
		case "client":
			os.Exit(clientMain(os.Args[2]))
		}
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("these tests make containers: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "psi-supervisor-test-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if testRoot = os.Getenv("PSI_ROOTFS"); testRoot != "" {
		return m.Run()
	}
	testRoot = filepath.Join(dir, "rootfs")
	python := "/usr/bin/python3.11"
	if p := os.Getenv("PSI_TEST_PYTHON"); p != "" {
		python = p
	}
	if _, err := rootfs.Build(context.Background(), rootfs.Options{Python: python, Output: testRoot, Format: "dir"}); err != nil {
		fmt.Println("building the root file system:", err)
		return 1
	}
	return m.Run()
}

// scaled stretches a time for machines that are emulated: everything there takes some
// tens of times as long.
func scaled(d time.Duration) time.Duration {
	if os.Getenv("PSI_TEST_VM") != "" {
		return 20 * d
	}
	return d
}

// outerMain is what cmd/psi-shim does for serve: descriptor 3 is the control socket
// unless the configuration names a socket.
func outerMain(argument string) int {
	var config Config
	if err := json.Unmarshal([]byte(argument), &config); err != nil {
		return fail(err)
	}
	var control *os.File
	if config.Socket == "" {
		control = os.NewFile(3, "control")
	}
	code, err := Launch(config, control)
	if err != nil {
		return fail(err)
	}
	return code
}

func innerMain(argument string) int {
	var config Config
	if err := json.Unmarshal([]byte(argument), &config); err != nil {
		return fail(err)
	}
	log := logrus.New()
	level, err := logrus.ParseLevel(config.LogLevel)
	if err != nil {
		return fail(err)
	}
	log.SetLevel(level)
	if err := Supervise(config, log); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
