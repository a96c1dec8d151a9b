package policy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

const schemaFile = "../../docs/policy.schema.json"

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.schema.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("policy.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// instance reads a document as an editor does.
func instance(t *testing.T, text []byte) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal(text, &value); err != nil {
		return nil
	}
	asJSON, err := json.Marshal(value)
	if err != nil {
		return nil
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSchemaKeys holds the schema to the keys and ranges of the parser.
func TestSchemaKeys(t *testing.T) {
	var schema struct {
		Defs struct {
			Document, Sandbox struct{ Properties map[string]any }
			Policy            struct {
				Properties map[string]struct {
					Default any
					Minimum json.Number
					Maximum json.Number
					AnyOf   []struct {
						Ref   string `json:"$ref"`
						Const *int
						AnyOf []struct {
							Const            *int
							Minimum, Maximum json.Number
						}
						Minimum, Maximum json.Number
					}
				}
			}
		} `json:"$defs"`
	}
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	keys := schema.Defs.Policy.Properties
	for _, name := range keyNames() {
		if _, found := keys[name]; !found {
			t.Errorf("the schema has no key %s", name)
		}
	}
	if len(keys) != len(keyNames()) || len(schema.Defs.Document.Properties) != len(rootKeys()) || schema.Defs.Sandbox.Properties["extends"] == nil {
		t.Errorf("the schema has other keys than the parser: %v", keys)
	}
	for _, k := range limitTable() {
		entry := keys[k.key]
		low, high, zero, size := entry.Minimum, entry.Maximum, false, false
		for _, way := range entry.AnyOf {
			size = size || way.Ref == "#/$defs/size"
			zero = zero || way.Const != nil
			if way.Minimum != "" {
				low, high = way.Minimum, way.Maximum
			}
			for _, inner := range way.AnyOf {
				zero = zero || inner.Const != nil
				if inner.Minimum != "" {
					low, high = inner.Minimum, inner.Maximum
				}
			}
		}
		lowest, err1 := low.Int64()
		highest, err2 := high.Int64()
		if err1 != nil || err2 != nil || lowest != k.min || highest != k.max || zero != k.zero || size != k.size {
			t.Errorf("%s: the schema says %s to %s, zero %v, size %v", k.key, low, high, zero, size)
		}
	}
	for key, entry := range keys {
		if entry.Default == nil {
			continue
		}
		text, err := json.Marshal(map[string]any{key: entry.Default})
		if err != nil {
			t.Fatal(err)
		}
		if p := must(t)(Parse(text, "default.json")); p.Digest() != Defaults().Digest() {
			t.Errorf("%s is not the default", text)
		}
	}
}

// TestSchemaAccepts validates what the parser accepts: the examples of the
// reference, the built-in policies and canonical forms.
func TestSchemaAccepts(t *testing.T) {
	schema := compileSchema(t)
	accepted, refused := 0, 0
	check := func(name string, text []byte, valid bool) {
		err := schema.Validate(instance(t, text))
		switch {
		case valid && err != nil:
			t.Errorf("%s: %v", name, err)
		case valid:
			accepted++
		case err != nil:
			refused++
		}
	}
	fences, _ := readReference(t)
	for _, f := range fences {
		if f.language != "yaml" && f.language != "json" || f.info == "guest.yml" {
			continue
		}
		_, errs := ReadDocument([]byte(f.text), "policy.yml")
		check("the reference", []byte(f.text), len(errs) == 0)
	}
	for _, name := range Names() {
		data, err := builtinData(name)
		if err != nil {
			t.Fatal(err)
		}
		check(name, data, true)
		check(name, must(t)(Named(name)).Canonical(), true)
	}
	if accepted < 20 || refused < 4 {
		t.Errorf("only %d examples are valid, %d are refused", accepted, refused)
	}
}

// TestSchemaRefuses gives the schema the corpus of bad policies. What only the
// parser can know, such as forbidden places, it lets pass.
func TestSchemaRefuses(t *testing.T) {
	schema := compileSchema(t)
	refused, all := 0, 0
	for _, bad := range readCorpus(t) {
		value := instance(t, bad.text)
		if value == nil {
			continue // not even YAML
		}
		all++
		if schema.Validate(value) != nil {
			refused++
		}
	}
	t.Logf("the schema refuses %d of %d", refused, all)
	if 2*refused < all {
		t.Errorf("the schema refuses only %d of %d bad policies", refused, all)
	}
}

// TestPythonKeys holds the Python client, which refuses keys that it does not know, to
// those of the parser.
func TestPythonKeys(t *testing.T) {
	cmd := exec.Command("/usr/bin/python3.11", "-B", "-c", "from pyisolate.policy import _KEYS; print(*_KEYS)")
	cmd.Env = append(os.Environ(), "PYTHONPATH=../../python")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := strings.Fields(string(out)), append(keyNames(), "version")
	slices.Sort(theirs)
	slices.Sort(ours)
	if !slices.Equal(theirs, ours) {
		t.Errorf("the Python client knows %v, the parser %v", theirs, ours)
	}
}
