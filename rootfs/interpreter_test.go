package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// interpreters returns the supported CPythons of this machine, one per
// version and build: the system's, those on PATH, and those of pyenv.
func interpreters(t *testing.T) []string {
	t.Helper()
	candidates := []string{systemPython}
	for minor := oldestMinor; minor <= newestMinor; minor++ {
		if path, err := exec.LookPath(fmt.Sprintf("python3.%d", minor)); err == nil {
			candidates = append(candidates, path)
		}
	}
	if home, err := os.UserHomeDir(); err == nil {
		found, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/3.*/bin/python3"))
		candidates = append(candidates, found...)
	}
	var usable []string
	for _, path := range candidates {
		python, err := askInterpreter(context.Background(), path)
		if err == nil && !slices.Contains(usable, python.Executable) {
			usable = append(usable, python.Executable)
		}
	}
	if len(usable) == 0 {
		t.Fatalf("no CPython 3.%d to 3.%d on this machine", oldestMinor, newestMinor)
	}
	return usable
}

// TestInterpreters packs every CPython of the machine: shared and static
// builds, below /usr and elsewhere. It builds each twice, with modules whose
// bytecode likes to differ, and wants the same bytes.
func TestInterpreters(t *testing.T) {
	for _, python := range interpreters(t) {
		t.Run(python, func(t *testing.T) {
			site := trapSources(t)
			report := build(t, Options{Python: python, SitePackages: []string{site}})
			t.Logf("%d bytes, %d files, Python %s", report.Size, report.Files, report.Python)
			checkRun(t, report.Path)
			checkImports(t, report.Path)
			checkBytecode(t, report)
			checkClosures(t, report.Path)
			checkHidden(t, report.Path)
			for _, line := range report.LeftOut {
				if strings.Contains(line, "will not load") || strings.Contains(line, "does not compile") {
					t.Error(line)
				}
			}
			disturb(t, site)
			archive := filepath.Join(t.TempDir(), "root.tar")
			again := build(t, Options{Python: python, SitePackages: []string{site}, Output: archive, Format: formatTar})
			if report.Digest != again.Digest {
				t.Errorf("two builds differ in %s", differences(t, report.Path, archive))
			}
		})
	}
}

// TestVirtualEnvironment gives a venv's python, and the venv as site packages.
func TestVirtualEnvironment(t *testing.T) {
	venv := filepath.Join(t.TempDir(), "venv")
	if out, err := exec.Command(systemPython, "-m", "venv", "--without-pip", venv).CombinedOutput(); err != nil {
		t.Fatalf("making a virtual environment: %v\n%s", err, out)
	}
	site, err := filepath.Glob(filepath.Join(venv, "lib/python3.*/site-packages"))
	if err != nil || len(site) != 1 {
		t.Fatalf("site packages of the virtual environment: %v %v", site, err)
	}
	if err := os.WriteFile(filepath.Join(site[0], "installed.py"), []byte("value = 42\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	report := build(t, Options{Python: filepath.Join(venv, "bin/python"), SitePackages: []string{venv}})
	out := inGuest(t, report.Path, "-c", "import sys; sys.path.append('/usr/lib/python3/dist-packages'); import installed; print(sys.prefix, installed.value)")
	if out != "/usr 42\n" {
		t.Errorf("guest said %q", out)
	}
}

// TestRefusedInterpreters: what is not a supported CPython is refused with
// its name, the rule, and what to give instead.
func TestRefusedInterpreters(t *testing.T) {
	answer := func(implementation, version string) string {
		return fmt.Sprintf(`echo '{"implementation": %q, "version": %s, "cache_tag": "x-39", "executable": "/usr/bin/python3", "stdlib": "/usr/lib/python3"}'`, implementation, version)
	}
	for name, test := range map[string]struct{ script, want string }{
		"other implementation": {answer("pypy", "[3, 10, 2]"), `it is "pypy" and not cpython`},
		"too old":              {answer("cpython", "[3, 8, 20]"), "version 3.8.20 is not supported"},
		"too new":              {answer("cpython", "[3, 15, 0]"), "version 3.15.0 is not supported"},
		"major version":        {answer("cpython", "[4, 11, 0]"), "version 4.11.0 is not supported"},
		"no interpreter":       {"echo hello", "it did not answer as Python does"},
		"failure":              {"echo broken >&2; exit 3", "exit status 3 (broken)"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			python, output := filepath.Join(dir, "python3"), filepath.Join(dir, "root")
			if err := os.WriteFile(python, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := Build(context.Background(), Options{Python: python, Output: output})
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range []string{test.want, python, "give a CPython 3.9 to 3.14 with --python"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if _, err := os.Lstat(output); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("output exists: %v", err)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		_, err := Build(context.Background(), Options{Python: "/nonexistent/python3", Output: filepath.Join(t.TempDir(), "root")})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/python3") {
			t.Errorf("error is %v", err)
		}
	})
}
