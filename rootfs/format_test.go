package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

type tarEntry struct {
	*tar.Header
	content []byte
}

// readTar reads an archive, and checks what holds for all of ours: sorted,
// owned by 0:0, one time, every directory before what it contains.
func readTar(t *testing.T, r io.Reader) map[string]tarEntry {
	t.Helper()
	entries := map[string]tarEntry{}
	archive := tar.NewReader(r)
	last := ""
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(header.Name, "/")
		if name <= last || strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") {
			t.Errorf("entry %q follows %q", name, last)
		}
		last = name
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" || !header.ModTime.Equal(fixedTime()) {
			t.Errorf("%s: owner %d:%d %q, time %s", name, header.Uid, header.Gid, header.Uname, header.ModTime)
		}
		if parent, ok := entries[filepath.Dir(name)]; filepath.Dir(name) != "." && (!ok || parent.Typeflag != tar.TypeDir) {
			t.Errorf("%s comes before its directory", name)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		entries[name] = tarEntry{header, content}
	}
}

// sameAsDir checks that an archive holds exactly the root in dir.
func sameAsDir(t *testing.T, entries map[string]tarEntry, dir string) {
	t.Helper()
	count := 0
	walk(t, dir, func(rel string, info fs.FileInfo) {
		if rel == "." {
			return
		}
		count++
		e, ok := entries[rel]
		if !ok {
			t.Errorf("%s is not in the archive", rel)
			return
		}
		at := filepath.Join(dir, rel)
		switch {
		case info.IsDir():
			ok = e.Typeflag == tar.TypeDir && e.FileInfo().Mode() == info.Mode()
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			ok = err == nil && e.Typeflag == tar.TypeSymlink && e.Linkname == target
		default:
			content, err := os.ReadFile(at)
			ok = err == nil && e.Typeflag == tar.TypeReg && e.FileInfo().Mode() == info.Mode() && bytes.Equal(content, e.content)
		}
		if !ok {
			t.Errorf("%s differs from the directory: %v", rel, e.Header)
		}
	})
	if count != len(entries) {
		t.Errorf("archive has %d entries, the directory %d", len(entries), count)
	}
}

// TestFormats builds one input in every format and compares them.
func TestFormats(t *testing.T) {
	out := t.TempDir()
	dir := build(t, Options{Output: filepath.Join(out, "root")})
	archive := build(t, Options{Output: filepath.Join(out, "root.tar"), Format: formatTar})
	layout := build(t, Options{Output: filepath.Join(out, "image"), Format: formatOCI})
	image := build(t, Options{Output: filepath.Join(out, "image.tar"), Format: formatOCI})
	for _, other := range []Report{archive, layout, image} {
		if other.Digest != dir.Digest || other.Size != dir.Size || other.Files != dir.Files {
			t.Errorf("%s: %s, %d bytes, %d files; the directory: %s, %d, %d",
				other.Path, other.Digest, other.Size, other.Files, dir.Digest, dir.Size, dir.Files)
		}
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 4 {
		t.Errorf("scratch files are left: %v %v", left, err)
	}
	t.Run("tar", func(t *testing.T) {
		file, err := os.Open(archive.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		sameAsDir(t, readTar(t, file), dir.Path)
	})
	t.Run("oci layout", func(t *testing.T) {
		checkImage(t, readFiles(t, layout.Path), dir)
	})
	t.Run("oci archive", func(t *testing.T) {
		file, err := os.Open(image.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		files := map[string][]byte{}
		for name, e := range readTar(t, file) {
			if e.Typeflag == tar.TypeReg {
				files[name] = e.content
			}
		}
		checkImage(t, files, dir)
	})
}

// readFiles reads all regular files of a directory.
func readFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	walk(t, dir, func(rel string, info fs.FileInfo) {
		if !info.Mode().IsRegular() {
			return
		}
		content, err := os.ReadFile(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		files[rel] = content
	})
	return files
}

// checkImage follows an image layout from its index to its layer.
func checkImage(t *testing.T, files map[string][]byte, root Report) {
	var layout imagespec.ImageLayout
	decode(t, files[imagespec.ImageLayoutFile], &layout)
	if layout.Version != imagespec.ImageLayoutVersion {
		t.Errorf("layout version %q", layout.Version)
	}
	var index imagespec.Index
	decode(t, files[imagespec.ImageIndexFile], &index)
	if len(index.Manifests) != 1 || index.SchemaVersion != 2 {
		t.Fatalf("index: %+v", index)
	}
	name := "localhost/psi-python:" + root.Python
	if index.Manifests[0].Annotations[imagespec.AnnotationRefName] != name {
		t.Errorf("image is called %v, want %s", index.Manifests[0].Annotations, name)
	}
	var m imagespec.Manifest
	decode(t, blob(t, files, index.Manifests[0], imagespec.MediaTypeImageManifest), &m)
	var config imagespec.Image
	decode(t, blob(t, files, m.Config, imagespec.MediaTypeImageConfig), &config)
	if config.OS != "linux" || config.Architecture != runtime.GOARCH {
		t.Errorf("image is for %s/%s", config.OS, config.Architecture)
	}
	want := []string{"/usr/bin/python" + root.Python, "-I", "-S", "/usr/lib/psi/agent.pyc"}
	if !slices.Equal(config.Config.Entrypoint, want) || len(config.Config.Cmd) != 0 {
		t.Errorf("entry point %q, command %q", config.Config.Entrypoint, config.Config.Cmd)
	}
	if config.Config.Labels[imageLabel] != root.Digest {
		t.Errorf("labels %v", config.Config.Labels)
	}
	if len(m.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
		t.Fatalf("%d layers, %d diff ids", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(blob(t, files, m.Layers[0], imagespec.MediaTypeImageLayerGzip)))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	if sum := digest.FromBytes(layer); sum != config.RootFS.DiffIDs[0] {
		t.Errorf("layer unpacks to %s, the configuration says %s", sum, config.RootFS.DiffIDs[0])
	}
	sameAsDir(t, readTar(t, bytes.NewReader(layer)), root.Path)
	if len(files) != 5 {
		t.Errorf("image has %d files, want 5", len(files))
	}
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	if err := strict.Decode(into); err != nil {
		t.Fatalf("%v in %.200q", err, data)
	}
}

// blob returns what a descriptor points to, checked against it.
func blob(t *testing.T, files map[string][]byte, d imagespec.Descriptor, mediaType string) []byte {
	t.Helper()
	data := files["blobs/sha256/"+d.Digest.Encoded()]
	if d.MediaType != mediaType || d.Size != int64(len(data)) || d.Digest.String() != fmt.Sprintf("sha256:%x", sha256.Sum256(data)) {
		t.Fatalf("blob %s of type %s has %d bytes, the descriptor says %d", d.Digest, d.MediaType, len(data), d.Size)
	}
	return data
}
