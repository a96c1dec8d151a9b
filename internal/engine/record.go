package engine

import (
	"encoding/json"
	"fmt"
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Annotations in which psi-runtime keeps, with the container's state, what it decided
// when the container was made. A bundle's own are never believed.
const (
	enforcedKey = "io.psi.enforced"
	confineKey  = "io.psi.confine"
	filesKey    = "io.psi.files"
	madeKey     = "io.psi.made"
	givenKey    = "io.psi.given"
)

// Record is what is known of the policy of a container that exists.
type Record struct {
	Policy   policy.Policy // in force
	Own      bool
	Confine  Confine
	Files    Files
	Made     Made
	Given    Given
	Enforced []Enforcement
}

// Made is what a container was made with, which no later policy changes.
type Made struct {
	Policy policy.Policy // what its mounts, filters and Landlock domain hold
	Bounds []Bound       // beyond which nothing may be permitted
	Pairs  Pairs         // who decides where pairs of datagram sockets lead
}

// madeRecord is Made as it is written down.
type madeRecord struct {
	Policy json.RawMessage `json:"policy"`
	Bounds []boundRecord   `json:"bounds,omitempty"`
	Pairs  Pairs           `json:"pairs,omitempty"`
}

type boundRecord struct {
	What   string          `json:"what"`
	Policy json.RawMessage `json:"policy"`
}

// MarshalJSON writes the policies as their canonical documents.
func (m *Made) MarshalJSON() ([]byte, error) {
	out := madeRecord{Policy: m.Policy.Canonical(), Pairs: m.Pairs}
	for _, b := range m.Bounds {
		out.Bounds = append(out.Bounds, boundRecord{b.What, b.Policy.Canonical()})
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Made) UnmarshalJSON(data []byte) (err error) {
	var in madeRecord
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	if m.Policy, err = policy.Parse(in.Policy, "the policy it was made with"); err != nil {
		return err
	}
	for _, b := range in.Bounds {
		p, err := policy.Parse(b.Policy, b.What)
		if err != nil {
			return err
		}
		m.Bounds = append(m.Bounds, Bound{b.What, p})
	}
	m.Pairs = in.Pairs
	return m.Pairs.check()
}

// Forget removes what only psi-runtime writes from a bundle's annotations.
func Forget(spec *specs.Spec) {
	spec.Annotations = Visible(spec.Annotations)
}

// Visible returns the annotations that are the bundle's own.
func Visible(annotations map[string]string) map[string]string {
	out := maps.Clone(annotations)
	for key := range (&Record{}).parts() {
		delete(out, key)
	}
	return out
}

// Write puts the record among the annotations of a specification.
func (r Record) Write(spec *specs.Spec) error {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	notes, err := r.Annotations()
	maps.Copy(spec.Annotations, notes)
	return err
}

// Annotations are what Write puts there.
func (r Record) Annotations() (map[string]string, error) {
	out := map[string]string{PolicyKey: string(r.Policy.Canonical())}
	for key, part := range r.parts() {
		data, err := json.Marshal(part)
		if err != nil {
			return nil, fmt.Errorf("writing down what is enforced: %w", err)
		}
		out[key] = string(data)
	}
	return out, nil
}

// parts are what is written down beside the policy, by annotation.
func (r *Record) parts() map[string]any {
	return map[string]any{enforcedKey: &r.Enforced, confineKey: &r.Confine, filesKey: &r.Files, madeKey: &r.Made, givenKey: &r.Given}
}

// ReadRecord reads the record of a container from its annotations; nil if it has no
// policy.
func ReadRecord(annotations map[string]string) (*Record, error) {
	text, ok := annotations[PolicyKey]
	if !ok {
		return nil, nil
	}
	p, err := policy.Parse([]byte(text), "annotation "+PolicyKey)
	if err != nil {
		return nil, fmt.Errorf("reading the container's policy: %w", err)
	}
	r := &Record{Policy: p, Own: annotations[IDsKey] == "auto"}
	for key, into := range r.parts() {
		if text, ok := annotations[key]; ok {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				return nil, fmt.Errorf("reading annotation %s of the container: %w", key, err)
			}
		}
	}
	return r, nil
}
