package rootfs

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// layoutMark is the file by which an OCI image layout is recognised.
const layoutMark = "oci-layout"

// imageLabel carries the digest of the root in an image's labels.
const imageLabel = "io.psi.rootfs"

// containerdImageName is the annotation from which `ctr image import` takes
// an image's name; podman takes it from the one of the OCI specification.
const containerdImageName = "io.containerd.image.name"

// writeImage writes the tree as an OCI image layout with one layer, which an
// engine can run as it is: its entry point is the agent.
func writeImage(ctx context.Context, dir string, t *tree, python interpreter, r Report) error {
	layout := imageLayout{dir: dir}
	if err := os.MkdirAll(layout.blobs(), 0o755); err != nil {
		return fmt.Errorf("creating image: %w", err)
	}
	layer, diffID, err := layout.addLayer(ctx, t)
	if err != nil {
		return err
	}
	config, err := imageConfig(python, r, diffID)
	if err != nil {
		return err
	}
	configBlob, err := layout.addJSON(mediaTypeConfig, config)
	if err != nil {
		return err
	}
	manifestBlob, err := layout.addJSON(mediaTypeManifest, ociManifest{
		SchemaVersion: 2,
		MediaType:     mediaTypeManifest,
		Config:        configBlob,
		Layers:        []ociDescriptor{layer},
		Annotations:   map[string]string{imageLabel: r.Digest},
	})
	if err != nil {
		return err
	}
	name := "localhost/psi-python:" + python.minor()
	manifestBlob.Platform = &config.ociPlatform
	manifestBlob.Annotations = map[string]string{annotationRefName: name, containerdImageName: name}
	if err := layout.writeJSON("index.json", ociIndex{
		SchemaVersion: 2,
		MediaType:     mediaTypeIndex,
		Manifests:     []ociDescriptor{manifestBlob},
	}); err != nil {
		return err
	}
	return layout.writeJSON(layoutMark, ociLayout{Version: "1.0.0"})
}

// imageConfig is how an engine runs the image when it is told nothing else.
func imageConfig(python interpreter, r Report, diffID string) (ociImage, error) {
	architecture, err := python.architecture()
	if err != nil {
		return ociImage{}, err
	}
	created := fixedTime()
	return ociImage{
		Created:     created,
		ociPlatform: ociPlatform{Architecture: architecture, OS: "linux"},
		Config: ociImageConfig{
			User:       "0:0",
			Env:        []string{"PATH=/usr/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8"},
			Entrypoint: []string{"/" + python.executablePath(), "-I", "-S", "/" + agentDir + "/agent.pyc"},
			WorkingDir: "/",
			StopSignal: "SIGTERM",
			Labels: map[string]string{
				annotationTitle: "psi guest, Python " + python.minor(),
				imageLabel:      r.Digest,
			},
		},
		RootFS:  ociRootFS{Type: "layers", DiffIDs: []string{diffID}},
		History: []ociHistory{{Created: created, CreatedBy: "psi-runtime rootfs build"}},
	}, nil
}

// architecture is the machine of the interpreter in OCI's words, which are Go's.
func (p interpreter) architecture() (string, error) {
	program, ok, err := readELF(p.Executable, p.Executable)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("reading interpreter %s: not an ELF program", p.Executable)
	}
	switch program.machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("making an image of %s: unknown machine %s: psi runs on x86-64 and arm64", p.Executable, program.machine)
}

// imageLayout is a directory of blobs named by their digests.
type imageLayout struct{ dir string }

func (l imageLayout) blobs() string { return filepath.Join(l.dir, "blobs", "sha256") }

// blobName is the file name of a blob: its digest without the algorithm.
func blobName(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// addLayer writes the tree as a compressed layer; diffID is the digest of the
// uncompressed archive.
func (l imageLayout) addLayer(ctx context.Context, t *tree) (layer ociDescriptor, diffID string, err error) {
	scratch := filepath.Join(l.dir, "layer")
	plain, packed := sha256.New(), sha256.New()
	err = writeFile(scratch, func(w io.Writer) error {
		compressed := gzip.NewWriter(io.MultiWriter(w, packed))
		if err := writeTar(ctx, io.MultiWriter(compressed, plain), t); err != nil {
			return err
		}
		if err := compressed.Close(); err != nil {
			return fmt.Errorf("compressing layer: %w", err)
		}
		return nil
	})
	if err != nil {
		return layer, "", err
	}
	info, err := os.Stat(scratch)
	if err != nil {
		return layer, "", fmt.Errorf("writing layer: %w", err)
	}
	layer = ociDescriptor{
		MediaType: mediaTypeLayerGzip,
		Digest:    ociDigest(packed),
		Size:      info.Size(),
	}
	if err := os.Rename(scratch, filepath.Join(l.blobs(), blobName(layer.Digest))); err != nil {
		return layer, "", fmt.Errorf("writing layer: %w", err)
	}
	return layer, ociDigest(plain), nil
}

// addJSON writes a value as a blob.
func (l imageLayout) addJSON(mediaType string, value any) (ociDescriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ociDescriptor{}, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	d := ociDescriptor{MediaType: mediaType, Digest: ociDigestOf(data), Size: int64(len(data))}
	return d, writeNewFile(filepath.Join(l.blobs(), blobName(d.Digest)), data)
}

func (l imageLayout) writeJSON(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	return writeNewFile(filepath.Join(l.dir, name), data)
}
