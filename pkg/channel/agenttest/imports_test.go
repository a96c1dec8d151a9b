package agenttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/channel"
)

func TestImportList(t *testing.T) {
	g := start(t, config{"imports": []string{"math", "collections", "time", "datetime", "json", "importlib", "xml.etree"}})
	for _, source := range []string{
		"import math, collections.abc, json, datetime, time", "from math import sqrt", "from __future__ import annotations",
		"collections.namedtuple('P', 'x y')(1, 2); json.loads('{}')", "from xml.etree import ElementTree", "from xml import etree",
		"time.strptime('2024', '%Y'); datetime.datetime.strptime('2024', '%Y')", "import importlib; importlib.import_module('json.decoder')",
	} {
		g.done(g.exec(source))
	}
	for _, source := range []string{
		"import os", "import socket", "from os import path", "import os.path", "__import__('subprocess')", "import sys",
		"import mathx", "import xml", "from xml import dom", "import importlib; importlib.import_module('os')",
		"import importlib; importlib.import_module('decimal')", "exec('import ctypes', {})", "def f(): import pickle\nf()",
	} {
		found := g.failed(g.exec(source), "ImportError")
		if !strings.Contains(found.Message, "is not allowed") || !strings.Contains(found.Message, "math, collections") || !strings.Contains(found.Message, "allow_import") {
			t.Errorf("%s: %s", source, found.Message)
		}
	}
	g.result(g.call("math.sqrt", 4), 2.0)
	g.failed(g.call("os.getpid"), "ImportError")
	found := g.failed(g.exec("1/0"), "ZeroDivisionError") // the agent's own imports work
	if !strings.Contains(found.Traceback, "1/0") {
		t.Errorf("traceback %q", found.Traceback)
	}
}

func TestEmptyImportList(t *testing.T) {
	g := start(t, config{"imports": []string{}})
	found := g.failed(g.exec("import math"), "ImportError")
	if !strings.Contains(found.Message, "'math'") || !strings.Contains(found.Message, "allows nothing") {
		t.Error(found.Message)
	}
	id := g.exec("post(sorted([2, 1]))")
	g.posted([]any{int64(1), int64(2)})
	g.done(id)
}

func TestNoImportList(t *testing.T) {
	g := start(t, config{"imports": nil})
	g.done(g.exec("import os, socket, decimal\nassert 'PSI_CONFIG' not in os.environ"))
}

func TestNumpyArraysCross(t *testing.T) {
	if os.Getenv("PSI_TEST_PYTHON") != "" {
		t.Skip("numpy is there for Debian's Python only")
	}
	g := start(t, nil)
	id := g.exec("import sys; sys.path.append('/usr/lib/python3/dist-packages')\nimport numpy\npost(numpy.arange(4, dtype='<i4').reshape(2, 2)); post(numpy.float64(0.5))")
	g.posted(channel.NDArray{DType: "<i4", Shape: []int{2, 2}, Order: 'C', Data: []byte("\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00")})
	g.posted(0.5)
	g.done(id)
	g.failed(g.exec("post(numpy.array([object()]))"), "TypeError")
}

// Engines give two pipes instead of one socket.
func TestPipes(t *testing.T) {
	g, write := startOnPipes(t)
	large := strings.Repeat("x", 1<<20)
	id := g.exec("while True: post(recv())")
	for _, value := range []string{"a", large, "b"} {
		go g.post(value)
		g.posted(value)
	}
	g.send(channel.Interrupt, id, nil)
	g.failed(id, "KeyboardInterrupt")
	id = g.busy("while True: pass")
	g.send(channel.Interrupt, id, nil)
	g.failed(id, "KeyboardInterrupt")
	write.Close()
	g.exits(0)
}

// startOnPipes runs the agent with two pipes; write is the host's end of the one to the guest.
func startOnPipes(t *testing.T) (_ *guest, write *os.File) {
	t.Helper()
	var in, out [2]int
	for _, p := range []*[2]int{&in, &out} {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(out[0], true); err != nil {
		t.Fatal(err)
	}
	stdin, stdout := os.NewFile(uintptr(in[0]), "stdin"), os.NewFile(uintptr(out[1]), "stdout")
	g := startOn(t, nil, os.NewFile(uintptr(out[0]), "from guest"), stdin, stdout)
	stdin.Close()
	stdout.Close()
	write = os.NewFile(uintptr(in[1]), "to guest")
	t.Cleanup(func() { write.Close() })
	g.w = channel.NewWriter(write)
	return g, write
}

func TestScriptMode(t *testing.T) {
	run := func(imports, source string, args ...string) (string, int) {
		t.Helper()
		script := filepath.Join(t.TempDir(), "entry.py")
		if err := os.WriteFile(script, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(python(), append([]string{"-I", "-S", "../../../rootfs/agent/agent.py", "--script", script}, args...)...)
		cmd.Env = []string{`PSI_CONFIG={"imports":` + imports + `}`}
		cmd.Stdin = strings.NewReader("typed")
		out, _ := cmd.CombinedOutput()
		carets := regexp.MustCompile(`(?m)^ *[~^]+\n`) // of some versions
		return carets.ReplaceAllString(strings.ReplaceAll(string(out), script, "entry.py"), ""), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		imports, source, out string
		code                 int
	}{
		{"null", "import sys\nprint(__name__, sys.argv[1:], sys.stdin.read())", "__main__ ['a', 'b'] typed\n", 0},
		{"null", "import sys; sys.exit(3)", "", 3},
		{"null", "import sys; sys.exit('why')", "why\n", 1},
		{"null", "def f(): 1/0\nf()", "Traceback (most recent call last):\n  File \"entry.py\", line 2, in <module>\n    f()\n  File \"entry.py\", line 1, in f\n    def f(): 1/0\nZeroDivisionError: division by zero\n", 1},
		{"null", "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('last'))).start()", "last\n", 0},
		{"null", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "", 143},
		{"null", "import dataclasses\n@dataclasses.dataclass\nclass A: x: int\nimport pickle; print(pickle.loads(pickle.dumps(A(1))))", "A(x=1)\n", 0},
		{`["math"]`, "import math; print(math.pi > 3)\ntry: import os\nexcept ImportError as e: print(e.name)", "True\nos\n", 0},
	} {
		if out, code := run(c.imports, c.source, "a", "b"); out != c.out || code != c.code {
			t.Errorf("%s: exit status %d and %q; want %d and %q", c.source, code, out, c.code, c.out)
		}
	}
}

func TestNothingToReadStaysQuiet(t *testing.T) {
	g := start(t, nil)
	g.exec("recv()")
	time.Sleep(200 * time.Millisecond)
	before := cpuTime(t, g.cmd.Process.Pid)
	time.Sleep(time.Second)
	if used := cpuTime(t, g.cmd.Process.Pid) - before; used > 1 {
		t.Errorf("%d ticks of CPU in a second of waiting", used)
	}
}

func cpuTime(t *testing.T, pid int) int {
	t.Helper()
	return statField(t, pid, 11) + statField(t, pid, 12)
}
