package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// document is the canonical form. The fields are in the order of their keys, so
// that encoding/json writes them sorted; every limit is a number in the unit of
// its key. Those of the network, udp and expose are missing when the policy says nothing of
// them, so that a policy without them has the digest that it always had. imports is
// missing when every module may be imported, seccomp when only the engine's filter is
// meant.
type document struct {
	AllowDegraded bool                `json:"allow_degraded"`
	CPU           float64             `json:"cpu"`
	CPUMillis     int64               `json:"cpu_ms"`
	Expose        []uint16            `json:"expose,omitempty"`
	FS            []map[FSMode]string `json:"fs"`
	Imports       *[]string           `json:"imports,omitempty"`
	Isolation     Isolation           `json:"isolation,omitempty"`
	Mem           int64               `json:"mem"`
	Message       int64               `json:"message"`
	NetBytes      int64               `json:"net_bytes,omitempty"`
	NetConns      int64               `json:"net_conns,omitempty"`
	NetRate       int64               `json:"net_rate,omitempty"`
	OpenFiles     int64               `json:"open_files"`
	Output        int64               `json:"output"`
	PIDs          int64               `json:"pids"`
	Preload       []string            `json:"preload,omitempty"`
	ReadOnly      bool                `json:"read_only"`
	Seccomp       Seccomp             `json:"seccomp,omitempty"`
	TCP           []any               `json:"tcp"` // texts and {"allow": text, "private": true}, then {"deny": text}
	Tmp           int64               `json:"tmp"`
	UDP           []any               `json:"udp,omitempty"` // likewise
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
		Expose:        p.expose,
		FS:            make([]map[FSMode]string, 0, len(p.fs)),
		Isolation:     p.isolation,
		Mem:           l.Mem,
		Message:       l.Message,
		NetBytes:      l.NetBytes,
		NetConns:      l.NetConns,
		NetRate:       l.NetRate,
		OpenFiles:     l.OpenFiles,
		Output:        l.Output,
		PIDs:          l.PIDs,
		Preload:       p.preload,
		ReadOnly:      p.readOnly,
		Seccomp:       p.seccomp,
		TCP:           p.tcp.document(),
		Tmp:           l.Tmp,
		UDP:           p.udp.document(),
		WallMillis:    l.Wall.Milliseconds(),
	}
	for _, r := range p.fs {
		d.FS = append(d.FS, map[FSMode]string{r.Mode: r.Pattern})
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

// document writes the rules, those that deny after the others.
func (l endpoints) document() []any {
	all := make([]any, 0, len(l.allow)+len(l.deny))
	for _, e := range l.allow {
		if e.Private {
			all = append(all, privateEndpoint{e.String(), true})
		} else {
			all = append(all, e.String())
		}
	}
	for _, e := range l.deny {
		all = append(all, map[string]string{"deny": e.String()})
	}
	return all
}

// privateEndpoint is how a name that may lead to private addresses is written.
type privateEndpoint struct {
	Allow   string `json:"allow"`
	Private bool   `json:"private"`
}

// Digest returns "sha256:" and the hexadecimal digest of [Policy.Canonical].
func (p Policy) Digest() string {
	sum := sha256.Sum256(p.Canonical())
	return "sha256:" + hex.EncodeToString(sum[:])
}
