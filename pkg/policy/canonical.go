package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// document is the canonical form. The fields are in the order of their keys, so
// that encoding/json writes them sorted; every limit is a number in the unit of
// its key. imports is missing when every module may be imported,
// seccomp when only the engine's filter is meant.
type document struct {
	AllowDegraded bool                `json:"allow_degraded"`
	CPU           float64             `json:"cpu"`
	CPUMillis     int64               `json:"cpu_ms"`
	FS            []map[FSMode]string `json:"fs"`
	Imports       *[]string           `json:"imports,omitempty"`
	Mem           int64               `json:"mem"`
	Message       int64               `json:"message"`
	OpenFiles     int64               `json:"open_files"`
	Output        int64               `json:"output"`
	PIDs          int64               `json:"pids"`
	ReadOnly      bool                `json:"read_only"`
	Seccomp       Seccomp             `json:"seccomp,omitempty"`
	TCP           []any               `json:"tcp"` // texts, then {"deny": text}
	Tmp           int64               `json:"tmp"`
	WallMillis    int64               `json:"wall_ms"`
}

// Canonical returns the one document of this policy: JSON in UTF-8 on one line,
// keys sorted, every limit spelled out as a number, fs rules and endpoints in
// their order (denied endpoints after the others), modules sorted. [Parse] reads it back to an equal policy.
func (p Policy) Canonical() []byte {
	l := p.Limits()
	d := document{
		AllowDegraded: p.allowDegraded,
		CPU:           l.CPU,
		CPUMillis:     l.CPUTime.Milliseconds(),
		FS:            make([]map[FSMode]string, 0, len(p.fs)),
		Mem:           l.Mem,
		Message:       l.Message,
		OpenFiles:     l.OpenFiles,
		Output:        l.Output,
		PIDs:          l.PIDs,
		ReadOnly:      p.readOnly,
		Seccomp:       p.seccomp,
		TCP:           make([]any, 0, len(p.tcp)+len(p.tcpDeny)),
		Tmp:           l.Tmp,
		WallMillis:    l.Wall.Milliseconds(),
	}
	for _, r := range p.fs {
		d.FS = append(d.FS, map[FSMode]string{r.Mode: r.Pattern})
	}
	for _, e := range p.tcp {
		d.TCP = append(d.TCP, e.String())
	}
	for _, e := range p.tcpDeny {
		d.TCP = append(d.TCP, map[string]string{"deny": e.String()})
	}
	if p.importsLimited {
		imports := append([]string{}, p.imports...)
		d.Imports = &imports
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(d); err != nil {
		// Not reachable: limits are finite and text is UTF-8 by construction.
		// An empty document is one that every reader refuses.
		return nil
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Digest returns "sha256:" and the hexadecimal digest of [Policy.Canonical].
func (p Policy) Digest() string {
	sum := sha256.Sum256(p.Canonical())
	return "sha256:" + hex.EncodeToString(sum[:])
}
