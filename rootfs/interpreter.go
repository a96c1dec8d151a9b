package rootfs

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Oldest and newest minor version of CPython 3 that a root can hold: the
// agent and the seccomp profile are tested with these.
const (
	oldestMinor = 9
	newestMinor = 14
)

//go:embed scripts/probe.py
var probeScript string

// interpreter is what a CPython says about itself; see scripts/probe.py.
type interpreter struct {
	Implementation string `json:"implementation"`
	Version        []int  `json:"version"`
	CacheTag       string `json:"cache_tag"`
	Executable     string `json:"executable"`
	Stdlib         string `json:"stdlib"`
	Dynload        string `json:"dynload"`
	PlatLibDir     string `json:"platlibdir"`
	ABIThread      string `json:"abi_thread"` // "t" for a free-threaded build
	CAFile         string `json:"cafile"`
	Certificates   string `json:"certificates"`
	TimeZones      string `json:"timezones"`

	Builtin []string `json:"builtin"` // modules that are part of it
	Loaded  []string `json:"loaded"`  // modules that it has loaded when a program begins
}

// askInterpreter runs the interpreter at path and checks that a root can be
// made of it.
func askInterpreter(ctx context.Context, path string) (interpreter, error) {
	var python interpreter
	cmd := exec.CommandContext(ctx, path, "-I", "-S", "-c", probeScript)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	answer, err := cmd.Output()
	if err != nil {
		return python, fmt.Errorf("asking interpreter %s for its paths: %w%s: give a CPython 3.%d to 3.%d with --python",
			path, err, lastLine(stderr.String()), oldestMinor, newestMinor)
	}
	if err := json.Unmarshal(answer, &python); err != nil {
		return python, fmt.Errorf("asking interpreter %s for its paths: it did not answer as Python does (%w): give a CPython 3.%d to 3.%d with --python",
			path, err, oldestMinor, newestMinor)
	}
	if err := python.check(); err != nil {
		return python, fmt.Errorf("using interpreter %s: %w", path, err)
	}
	return python, nil
}

func (p interpreter) check() error {
	if p.Implementation != "cpython" {
		return fmt.Errorf("it is %q and not cpython: give a CPython 3.%d to 3.%d with --python", p.Implementation, oldestMinor, newestMinor)
	}
	if len(p.Version) != 3 || p.Version[0] != 3 || p.Version[1] < oldestMinor || p.Version[1] > newestMinor {
		return fmt.Errorf("version %s is not supported: give a CPython 3.%d to 3.%d with --python",
			strings.Trim(strings.ReplaceAll(fmt.Sprint(p.Version), " ", "."), "[]"), oldestMinor, newestMinor)
	}
	if p.CacheTag == "" {
		return errors.New("it has no bytecode cache tag (sys.implementation.cache_tag): use a build with bytecode caching")
	}
	for _, path := range []string{p.Executable, p.Stdlib} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("it names %q as a part of itself, which is not an absolute path: give its full path with --python", path)
		}
	}
	return nil
}

// minor is the version as it appears in names: "3.11".
func (p interpreter) minor() string { return fmt.Sprintf("%d.%d", p.Version[0], p.Version[1]) }

// Paths inside the root, slash-separated and relative to it.
func (p interpreter) executablePath() string { return "usr/bin/python" + p.minor() }
func (p interpreter) stdlibPath() string     { return "usr/lib/python" + p.minor() }
func (p interpreter) sitePath() string       { return p.stdlibPath() + "/site-packages" }

// cached is the path of the bytecode that the import system looks for beside
// a source: pkg/mod.py → pkg/__pycache__/mod.cpython-311.pyc.
func (p interpreter) cached(source string) string {
	dir, file := filepath.Split(source)
	return dir + "__pycache__/" + strings.TrimSuffix(file, ".py") + "." + p.CacheTag + ".pyc"
}

// lastLine returns the last line of a program's stderr as an error suffix:
// for a traceback, the line that names the exception.
func lastLine(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	const enough = 200
	switch last := lines[len(lines)-1]; {
	case last == "":
		return ""
	case len(last) > enough:
		return " (" + strings.ToValidUTF8(last[:enough], "") + "…)"
	default:
		return " (" + last + ")"
	}
}
