package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// manifestPath is the file by which a psi root is recognised.
const manifestPath = "usr/lib/psi/rootfs.json"

// manifest is the content of rootfs.json, read by pkg/bundle.Inspect.
type manifest struct {
	Python       string `json:"python"`
	Interpreter  string `json:"interpreter"`
	Agent        string `json:"agent"`
	SitePackages bool   `json:"site_packages"`
	Digest       string `json:"digest"`
}

func (m manifest) encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding /%s: %w", manifestPath, err)
	}
	return append(data, '\n'), nil
}

// seal reads every file once, computes the digest, and plans rootfs.json,
// which holds it and therefore enters it with an empty digest.
func (b *builder) seal(ctx context.Context) (Report, error) {
	m := manifest{
		Python:       b.python.minor(),
		Interpreter:  "/" + b.python.executablePath(),
		Agent:        "/" + agentDir + "/agent.pyc",
		SitePackages: len(b.options.SitePackages) > 0,
	}
	if err := b.putManifest(m); err != nil {
		return Report{}, err
	}
	entries := b.tree.sorted()
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("computing digest: %w", err)
		}
		if err := e.measure(); err != nil {
			return Report{}, err
		}
	}
	m.Digest = treeDigest(entries)
	if err := b.putManifest(m); err != nil {
		return Report{}, err
	}
	if err := b.tree.entries[manifestPath].measure(); err != nil {
		return Report{}, err
	}
	slices.Sort(b.leftOut)
	report := Report{Path: b.options.Output, Digest: m.Digest, Python: m.Python, LeftOut: slices.Compact(append([]string{}, b.leftOut...))}
	for _, e := range b.tree.entries {
		if e.kind == typeFile {
			report.Files++
			report.Size += e.size
		}
	}
	return report, nil
}

func (b *builder) putManifest(m manifest) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	b.tree.bytes(manifestPath, data)
	return nil
}

// treeDigest is "sha256:<hex>" of one line per entry, in the order of their paths:
//
//	path NUL type NUL mode (octal) NUL content hash | link target NUL \n
//
// Paths and targets cannot hold a NUL, so no two trees have the same lines.
func treeDigest(entries []*entry) string {
	sum := sha256.New()
	for _, e := range entries {
		value := e.link
		if e.kind == typeFile {
			value = hex.EncodeToString(e.hash[:])
		}
		sum.Write([]byte(strings.Join([]string{e.path, string(e.kind), fmt.Sprintf("%o", e.mode), value, "\n"}, "\x00")))
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil))
}
