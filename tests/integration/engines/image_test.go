package engines

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// archive is the file of a built image.
func archive(t *testing.T, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func buildPython() (string, error) {
	path := built.dir + "/python.tar"
	out, err := exec.Command(built.runtime, "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "oci", "-o", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the image (run `make build` first): %w\n%s", err, out)
	}
	return path, nil
}

func buildPause() (string, error) {
	program, path := built.dir+"/pause", built.dir+"/pause.tar"
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the pause program: %w\n%s", err, out)
	}
	return path, writeImage(path, pauseImage, program, "pause", nil)
}

func buildBusybox() (string, error) {
	path := built.dir + "/busybox.tar"
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return "", fmt.Errorf("listing busybox (run `make setup`): %w", err)
	}
	return path, writeImage(path, busyboxImage, "/bin/busybox", "bin/busybox", strings.Fields(string(applets)))
}

// writeImage writes an OCI archive with one static program in it, and links to it in /bin for the
// names that it goes by.
func writeImage(archive, ref, program, at string, names []string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("making the image %s: %w", ref, err)
	}
	var layer tarball
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		layer.add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	layer.add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"))
	layer.add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\ndefault-user:x:1000:\nwww-data:x:33:\nnobody:x:65534:\n"))
	layer.add(tar.Header{Name: at, Mode: 0o755}, data)
	for _, name := range names {
		if "bin/"+name == at {
			continue
		}
		layer.add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeLink, Linkname: at, Mode: 0o755}, nil)
	}
	blob := layer.bytes()

	var out tarball
	store := func(mediaType string, content []byte) v1.Descriptor {
		d := digest.FromBytes(content)
		out.add(tar.Header{Name: "blobs/sha256/" + d.Encoded(), Mode: 0o644}, content)
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
	}
	config, err := json.Marshal(v1.Image{
		Platform: v1.Platform{Architecture: "amd64", OS: "linux"},
		Config:   v1.ImageConfig{Entrypoint: entrypoint(at, names), Env: []string{"PATH=/bin"}},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(blob)}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: imagespec.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: store(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{store(v1.MediaTypeImageLayer, blob)},
	})
	if err != nil {
		return err
	}
	top := store(v1.MediaTypeImageManifest, manifest)
	top.Annotations = map[string]string{"io.containerd.image.name": ref, v1.AnnotationRefName: ref}
	index, err := json.Marshal(v1.Index{Versioned: imagespec.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{top}})
	if err != nil {
		return err
	}
	out.add(tar.Header{Name: "index.json", Mode: 0o644}, index)
	out.add(tar.Header{Name: "oci-layout", Mode: 0o644}, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return os.WriteFile(archive, out.bytes(), 0o644)
}

// entrypoint is the program itself, unless it goes by other names.
func entrypoint(at string, names []string) []string {
	if len(names) > 0 {
		return nil
	}
	return []string{"/" + at}
}

// tarball is a tar archive in memory.
type tarball struct {
	buffer bytes.Buffer
	writer *tar.Writer
}

func (t *tarball) add(h tar.Header, content []byte) {
	if t.writer == nil {
		t.writer = tar.NewWriter(&t.buffer)
	}
	h.Size = int64(len(content))
	// Writing to memory fails only for a header that tar cannot hold, which is seen in the first test.
	if err := t.writer.WriteHeader(&h); err == nil {
		t.writer.Write(content)
	}
}

func (t *tarball) bytes() []byte {
	t.writer.Close()
	return t.buffer.Bytes()
}
