package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// checkDuplicates refuses a specification in which two readers could find two policies:
// annotations, or one of psi's among them, that are there twice. Go takes the last, and
// does not mind the case of "annotations".
func checkDuplicates(data []byte) error {
	if !bytes.Contains(data, []byte("psi")) && !bytes.Contains(data, []byte(`\u`)) {
		return nil
	}
	var top pairs
	if err := json.Unmarshal(data, &top); err != nil {
		return err
	}
	found := false
	for _, p := range top {
		if !strings.EqualFold(p.key, "annotations") {
			continue
		}
		if found {
			return fmt.Errorf("%q is there twice", p.key)
		}
		found = true
		var annotations pairs
		if err := json.Unmarshal(p.value, &annotations); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, a := range annotations {
			if seen[a.key] {
				return fmt.Errorf("annotation %q is there twice", a.key)
			}
			seen[a.key] = true
		}
	}
	return nil
}

// pairs is a JSON object with all its keys, the doubled ones too.
type pairs []struct {
	key   string
	value json.RawMessage
}

// UnmarshalJSON reads an object; null is an empty one.
func (p *pairs) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	first, err := d.Token()
	if err != nil || first == nil {
		return err
	}
	if first != json.Delim('{') {
		return fmt.Errorf("it is no object: %v", first)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		name, _ := key.(string)
		*p = append(*p, struct {
			key   string
			value json.RawMessage
		}{name, value})
	}
	return nil
}
