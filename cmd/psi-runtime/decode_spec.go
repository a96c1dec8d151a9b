package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// decodeSpec reads a specification; nil is JSON's null. It refuses one in which two readers
// could find two policies: annotations, or one of psi's among them, that are there twice.
// Go takes the last, and does not mind the case of "annotations".
func decodeSpec(data []byte) (*specs.Spec, error) {
	var read *document
	if err := json.Unmarshal(data, &read); err != nil || read == nil {
		return nil, err
	}
	if err := read.Annotations.twice; err != nil && (bytes.Contains(data, []byte("psi")) || bytes.Contains(data, []byte(`\u`))) {
		return nil, err
	}
	read.Spec.Annotations = read.Annotations.values
	return &read.Spec, nil
}

// document is a specification, and how its annotations were written. What is for other
// systems is passed over: to learn its types takes Go as long as half of the rest.
type document struct {
	specs.Spec
	Annotations annotations `json:"annotations"`

	Solaris other `json:"solaris"`
	Windows other `json:"windows"`
	VM      other `json:"vm"`
	ZOS     other `json:"zos"`
	FreeBSD other `json:"freebsd"`
}

type other struct{}

type annotations struct {
	values map[string]string
	read   bool
	twice  error // what is there twice
}

// UnmarshalJSON is called for each member that Go takes for the annotations.
func (a *annotations) UnmarshalJSON(data []byte) error {
	if a.read {
		a.twice = errors.New(`"annotations" is there twice`)
	}
	a.read = true
	if err := json.Unmarshal(data, &a.values); err != nil {
		return err
	}
	seen := map[string]bool{}
	for tokens := json.NewDecoder(bytes.NewReader(data)); ; {
		key, err := tokens.Token()
		if err != nil {
			return nil // the end
		}
		name, ok := key.(string)
		if !ok {
			continue // a brace, or null
		}
		if seen[name] {
			a.twice = fmt.Errorf("annotation %q is there twice", name)
		}
		seen[name] = true
		if _, err := tokens.Token(); err != nil { // its value
			return err
		}
	}
}
