package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOutputRefused: nothing that a build has not made is ever replaced.
func TestOutputRefused(t *testing.T) {
	for name, test := range map[string]struct {
		format, want string
		prepare      func(path string) error
	}{
		"foreign directory": {formatDir, "is not empty and holds no psi root filesystem", func(path string) error {
			return os.MkdirAll(filepath.Join(path, "precious"), 0o755)
		}},
		"root as image": {formatOCI, "no oci-layout", func(path string) error {
			return writeNewFile(filepath.Join(path, manifestPath), nil)
		}},
		"file": {formatDir, "is not a directory", func(path string) error { return os.WriteFile(path, nil, 0o644) }},
		"link": {formatDir, "is not a directory", func(path string) error { return os.Symlink(filepath.Dir(path), path) }},
		"foreign file": {formatTar, "is not a tar archive", func(path string) error {
			return os.WriteFile(path, []byte(strings.Repeat("precious ", 100)), 0o644)
		}},
		"short file":           {formatTar, "is not a tar archive", func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) }},
		"directory as archive": {formatTar, "is not a file", func(path string) error { return os.Mkdir(path, 0o755) }},
		"format":               {"zip", `unknown format "zip": use dir, tar or oci`, func(string) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out")
			if err := test.prepare(path); err != nil {
				t.Fatal(err)
			}
			_, err := Build(context.Background(), Options{Python: systemPython, Output: path, Format: test.format})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
	if _, err := Build(context.Background(), Options{}); err == nil || !strings.Contains(err.Error(), "-o DIR") {
		t.Errorf("no output: %v", err)
	}
}

// writeSmall writes a root of one file as the last steps of a build do.
func writeSmall(t *testing.T, path, format, content string) {
	t.Helper()
	python, err := askInterpreter(context.Background(), systemPython)
	if err != nil {
		t.Fatal(err)
	}
	root := newTree()
	root.bytes(manifestPath, []byte(content))
	if err := root.entries[manifestPath].measure(); err != nil {
		t.Fatal(err)
	}
	out, err := openOutput(path, format)
	if err != nil {
		t.Fatal(err)
	}
	defer out.discard()
	if err := out.write(context.Background(), root, python, Report{}); err != nil {
		t.Fatal(err)
	}
}

// TestOutputReplaced: roots and archives are replaced as a whole, and appear
// in empty directories and in directories that have to be made.
func TestOutputReplaced(t *testing.T) {
	for _, test := range []struct{ format, name string }{
		{formatDir, "root"}, {formatTar, "root.tar"}, {formatOCI, "image"}, {formatOCI, "image.tar"},
	} {
		parent := filepath.Join(t.TempDir(), "deep/er")
		path := filepath.Join(parent, test.name)
		if test.name == "root" {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		writeSmall(t, path, test.format, "first")
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		stray := filepath.Join(path, "stray")
		if before.IsDir() {
			if err := os.WriteFile(stray, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		writeSmall(t, path, test.format, "second")
		after, err := os.Stat(path)
		if err != nil || os.SameFile(before, after) {
			t.Errorf("%s was not replaced: %v", test.name, err)
		}
		if _, err := os.Stat(stray); err == nil {
			t.Errorf("%s: a file of the replaced root is in the new one", test.name)
		}
		if list, err := os.ReadDir(parent); err != nil || len(list) != 1 {
			t.Errorf("%s: left beside it: %v %v", test.name, list, err)
		}
	}
}

// TestFailureChangesNothing: a build that fails or is cancelled at any step
// leaves the old root, and nothing beside it.
func TestFailureChangesNothing(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	mark := filepath.Join(root, manifestPath)
	if err := writeNewFile(mark, []byte("old")); err != nil {
		t.Fatal(err)
	}
	var steps []string
	count := func(step string) { steps = append(steps, step) }
	build(t, Options{Output: filepath.Join(t.TempDir(), "root"), Progress: count})
	for i := range steps {
		ctx, cancel := context.WithCancel(context.Background())
		seen := 0
		_, err := Build(ctx, Options{Python: systemPython, Output: root, Progress: func(string) {
			if seen++; seen == i+1 {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while %s: %v", steps[i], err)
		}
		content, err := os.ReadFile(mark)
		if err != nil || string(content) != "old" {
			t.Fatalf("cancelled while %s: the old root is gone: %v", steps[i], err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
			t.Fatalf("cancelled while %s: left behind %v %v", steps[i], list, err)
		}
	}
}

// TestAbandonedScratch: what a killed build left is removed by the next one,
// what another build is using is not.
func TestAbandonedScratch(t *testing.T) {
	dir := t.TempDir()
	abandoned := filepath.Join(dir, ".root.psi-build-1")
	used := filepath.Join(dir, ".root.psi-build-2")
	for _, path := range []string{abandoned, used} {
		if err := writeNewFile(filepath.Join(path, "file"), nil); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := lockDir(used)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	writeSmall(t, filepath.Join(dir, "root"), formatDir, "")
	if _, err := os.Stat(abandoned); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("abandoned scratch directory: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("scratch directory of another build: %v", err)
	}
}

// TestChangingSource: content that is not what the digest speaks of is never
// written.
func TestChangingSource(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	for _, later := range []string{"short", "other content", "changed-content"} {
		if err := os.WriteFile(source, []byte("first---content"), 0o600); err != nil {
			t.Fatal(err)
		}
		e := &entry{path: "file", kind: typeFile, source: source}
		if err := e.measure(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(source, []byte(later), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.copyTo(&strings.Builder{}); !errors.Is(err, errChanged) {
			t.Errorf("%q: %v", later, err)
		}
	}
}
