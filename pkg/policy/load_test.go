package policy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIsPath(t *testing.T) {
	for text, want := range map[string]bool{
		"defaults": false, "stdlib.readonly": false, "": false, "..": false, "a.ymlx": false, "yml": false, "a.txt": false,
		"./defaults": true, "/x": true, "a/": true, "a.yml": true, "a.yaml": true, "a.json": true, ".json": true,
	} {
		if got := IsPath(text); got != want {
			t.Errorf("IsPath(%q) = %v", text, got)
		}
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadFile(t *testing.T) {
	dir := t.TempDir()
	p := must(t)(Load(write(t, filepath.Join(dir, "a.yml"), "pids: 7")))
	if p.Limits().PIDs != 7 {
		t.Errorf("pids is %d", p.Limits().PIDs)
	}
	must(t)(Load(write(t, filepath.Join(dir, "without-extension"), "pids: 7")))

	_, err := Load(filepath.Join(dir, "none.yml"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none.yml") {
		t.Errorf("a file that is not there: %v", err)
	}
	bad := write(t, filepath.Join(dir, "bad.json"), "{\n  \"pids\": 0\n}")
	if _, err := Load(bad); err == nil || !strings.HasPrefix(err.Error(), bad+":2:11: pids: ") {
		t.Errorf("a bad file: %v", err)
	}
	large := write(t, filepath.Join(dir, "large.yml"), "#"+strings.Repeat("x", maxDocument))
	if _, err := Load(large); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("a large file: %v", err)
	}
	if _, err := Load(dir + "/"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

// TestLoadDoesNotWait opens what would block or never end.
func TestLoadDoesNotWait(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo.yml")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero"} {
		done := make(chan error, 1)
		go func() {
			_, err := Load(path)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: still loading", path)
		}
	}
}

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "site.yml"), "pids: 1")
	write(t, filepath.Join(dir, "data.json"), `{"pids": 2}`)
	write(t, filepath.Join(dir, "defaults.yaml"), "pids: 3")
	for name, want := range map[string]int64{"site": 1, "data": 2, "defaults": 3, "readonly-fs": 64, "stdlib.readonly": 64} {
		if p := must(t)(lookupIn(dir, name)); p.Limits().PIDs != want {
			t.Errorf("%s has pids %d, want %d", name, p.Limits().PIDs, want)
		}
	}
	must(t)(lookupIn(filepath.Join(dir, "none"), "defaults"))

	write(t, filepath.Join(dir, "site.json"), "{}")
	if _, err := lookupIn(dir, "site"); err == nil || !strings.Contains(err.Error(), "names several policies") {
		t.Errorf("an ambiguous name: %v", err)
	}
	// What is there and broken must not fall back to the built-in policy.
	write(t, filepath.Join(dir, "compute-only.yml"), "nonsense")
	if _, err := lookupIn(dir, "compute-only"); err == nil {
		t.Error("a broken file is passed over")
	}
	if err := os.Symlink(filepath.Join(dir, "loop.yml"), filepath.Join(dir, "loop.yml")); err != nil {
		t.Fatal(err)
	}
	if _, err := lookupIn(dir, "loop"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a file that cannot be looked at: %v", err)
	}
	_, err := lookupIn(dir, "compute_only")
	if err == nil || !strings.Contains(err.Error(), "built-in ones are defaults, stdlib.readonly, ") || !strings.Contains(err.Error(), `(did you mean "compute-only"?)`) {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestLookupRefusesPaths puts a policy where a name must not reach it.
func TestLookupRefusesPaths(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "policies")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(outside, "secret.yml"), "pids: 1")
	write(t, filepath.Join(dir, ".hidden.yml"), "pids: 1")
	for _, name := range []string{
		"", ".", "..", "../secret", "./x", "/etc/passwd", filepath.Join(outside, "secret"), "a/b", `a\b`, ".hidden", "-x", "_x",
		"a b", "a\x00", "a\n", "é", "a%2f", "a:b", "~", strings.Repeat("a", 65),
	} {
		p, err := lookupIn(dir, name)
		var e *Error
		if !errors.As(err, &e) || e.WayOut == "" || strings.Contains(e.WayOut, "built-in") {
			t.Errorf("%q: %v, %s", name, err, p.Canonical())
		}
		if !strings.Contains(name, "/") {
			if _, err := Load(name); err == nil {
				t.Errorf("Load takes %q", name)
			}
		}
	}
	// Lookup never opens files that Load would: the extension is not part of a name.
	for _, name := range []string{"secret.yml", "x.json"} {
		if _, err := lookupIn(dir, name); err == nil {
			t.Errorf("%q is found", name)
		}
	}
}
