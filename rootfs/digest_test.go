package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// checkDigest computes the digest again from what lies on the disk, by its
// documented definition and with none of the builder's code.
func checkDigest(t *testing.T, report Report) {
	var lines []string
	walk(t, report.Path, func(rel string, info fs.FileInfo) {
		if rel == "." {
			return
		}
		kind, mode, value := "d", fmt.Sprintf("%o", info.Mode().Perm()), ""
		at := filepath.Join(report.Path, rel)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			if err != nil {
				t.Fatal(err)
			}
			kind, mode, value = "l", "0", target
		case info.Mode().IsRegular():
			content, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			if rel == manifestPath {
				content = bytes.ReplaceAll(content, []byte(report.Digest), nil)
			}
			kind, value = "f", fmt.Sprintf("%x", sha256.Sum256(content))
		case info.Mode()&fs.ModeSticky != 0:
			mode = "1" + mode
		}
		lines = append(lines, rel+"\x00"+kind+"\x00"+mode+"\x00"+value+"\x00\n")
	})
	slices.SortFunc(lines, func(a, b string) int {
		pathA, _, _ := strings.Cut(a, "\x00")
		pathB, _, _ := strings.Cut(b, "\x00")
		return strings.Compare(pathA, pathB)
	})
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != report.Digest {
		t.Errorf("digest of the directory is %s, the report says %s", got, report.Digest)
	}
}

// trapSources are modules whose bytecode depends on the order of sets, on
// addresses, and on strings that other modules share.
func trapSources(t *testing.T) string {
	dir := t.TempDir()
	names := make([]string, 40)
	for i := range names {
		names[i] = fmt.Sprintf("%q", fmt.Sprintf("name%d", i))
	}
	for i := range 2*batchSize + 3 {
		source := fmt.Sprintf("def f(x):\n    return x in {%s}, x in {None, ..., 1.5, %d, 'a', b'b', ('t', None)}\n"+
			"shared_name = 'shared_value'\nother = {'shared_name', 'shared_value', 'only%d'}\n", strings.Join(names, ", "), i, i)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("trap%03d.py", i)), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// disturb changes what must not matter: times and modes of sources, and the
// environment of the builder.
func disturb(t *testing.T, site string) {
	later := time.Now().Add(time.Hour)
	for i := range 10 {
		file := filepath.Join(site, fmt.Sprintf("trap%03d.py", i))
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, later, later); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PYTHONHASHSEED", "1234")
	t.Setenv("PYTHONOPTIMIZE", "2")
	t.Setenv("SOURCE_DATE_EPOCH", "1")
}

// differences lists the files of an archive whose content is not that of the
// directory.
func differences(t *testing.T, dir, archive string) []string {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var differing []string
	for name, e := range readTar(t, file) {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if e.Typeflag == tar.TypeReg && (err != nil || !bytes.Equal(content, e.content)) {
			differing = append(differing, name)
		}
	}
	return differing
}

// TestDigestSees makes sure that each property of an entry changes the digest.
func TestDigestSees(t *testing.T) {
	plain := func() *tree {
		root := newTree()
		root.bytes("a/file", []byte("content"))
		root.symlink("a/link", "file")
		return root
	}
	seen := map[string]string{}
	for change, apply := range map[string]func(*tree){
		"nothing": func(*tree) {},
		"content": func(r *tree) { r.bytes("a/file", []byte("Content")) },
		"mode":    func(r *tree) { r.entries["a/file"].mode = 0o755 },
		"target":  func(r *tree) { r.symlink("a/link", "other") },
		"type":    func(r *tree) { r.bytes("a/link", []byte("file")) },
		"name":    func(r *tree) { r.bytes("a/file2", nil) },
		"dir":     func(r *tree) { r.dir("b", 0o755) },
	} {
		root := plain()
		apply(root)
		entries := root.sorted()
		for _, e := range entries {
			if err := e.measure(); err != nil {
				t.Fatal(err)
			}
		}
		sum := treeDigest(entries)
		if other, twice := seen[sum]; twice {
			t.Errorf("changing %s and %s gives one digest", change, other)
		}
		seen[sum] = change
	}
}
