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
)

// Record is what is known of the policy of a container that exists.
type Record struct {
	Policy   policy.Policy
	Own      bool
	Confine  Confine
	Files    Files
	Enforced []Enforcement
}

// Forget removes what only psi-runtime writes from a bundle's annotations.
func Forget(spec *specs.Spec) {
	spec.Annotations = Visible(spec.Annotations)
}

// Visible returns the annotations that are the bundle's own.
func Visible(annotations map[string]string) map[string]string {
	out := maps.Clone(annotations)
	delete(out, enforcedKey)
	delete(out, confineKey)
	delete(out, filesKey)
	return out
}

// Write puts the record among the annotations of a specification.
func (r Record) Write(spec *specs.Spec) error {
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[PolicyKey] = string(r.Policy.Canonical())
	for key, part := range r.parts() {
		data, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("writing down what is enforced: %w", err)
		}
		spec.Annotations[key] = string(data)
	}
	return nil
}

// parts are what is written down beside the policy, by annotation.
func (r *Record) parts() map[string]any {
	return map[string]any{enforcedKey: &r.Enforced, confineKey: &r.Confine, filesKey: &r.Files}
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
