package rootfs

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"time"
)

// The parts of the OCI image specification that a root needs. The package
// image-spec has them all, but links go-digest, whose initialiser compiles
// regular expressions for 0.3 ms in every process that contains it, and
// psi-runtime starts itself three times for one guest. The tests read what is
// written here with image-spec's own types, and allow no field they do not know.

const (
	mediaTypeIndex     = "application/vnd.oci.image.index.v1+json"
	mediaTypeManifest  = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeConfig    = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip"

	annotationRefName = "org.opencontainers.image.ref.name"
	annotationTitle   = "org.opencontainers.image.title"
)

type ociDescriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *ociPlatform      `json:"platform,omitempty"`
}

type ociPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type ociLayout struct {
	Version string `json:"imageLayoutVersion"`
}

type ociIndex struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Manifests     []ociDescriptor `json:"manifests"`
}

type ociManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        ociDescriptor     `json:"config"`
	Layers        []ociDescriptor   `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type ociImage struct {
	Created time.Time `json:"created"`
	ociPlatform
	Config  ociImageConfig `json:"config"`
	RootFS  ociRootFS      `json:"rootfs"`
	History []ociHistory   `json:"history"`
}

type ociImageConfig struct {
	User       string            `json:"User"`
	Env        []string          `json:"Env"`
	Entrypoint []string          `json:"Entrypoint"`
	WorkingDir string            `json:"WorkingDir"`
	Labels     map[string]string `json:"Labels"`
	StopSignal string            `json:"StopSignal"`
}

type ociRootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type ociHistory struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// ociDigest writes a hash as descriptors do.
func ociDigest(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

func ociDigestOf(data []byte) string {
	sum := sha256.New()
	sum.Write(data)
	return ociDigest(sum)
}
