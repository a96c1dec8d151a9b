package psi

import (
	"fmt"
	"io"
	"os"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Policy says which policy a guest gets. The zero value is "defaults", and for an engine's
// guest whatever the engine does by itself when it takes no policy.
type Policy struct {
	fields map[string]any
	err    error
}

// Named is the policy with this name: a file in /etc/psi/policies, or a built-in one.
func Named(name string) Policy {
	return Policy{fields: map[string]any{"policy_name": name}}
}

// maxPolicyFile is the largest policy document, in bytes.
const maxPolicyFile = 1 << 20

// File is the policy in a file, which is read now, with this process's rights. An error
// is Spawn's.
func File(path string) Policy {
	file, err := os.Open(path)
	if err == nil {
		var data []byte
		data, err = io.ReadAll(io.LimitReader(file, maxPolicyFile))
		file.Close()
		if err == nil {
			return Policy{fields: map[string]any{"policy_text": string(data), "policy_source": path}}
		}
	}
	return Policy{err: &PolicyError{SandboxError{Text: fmt.Sprintf("reading policy file: %v", err)}}}
}

// Document is the policy that a YAML or JSON text describes.
func Document(text string) Policy {
	return Policy{fields: map[string]any{"policy_text": text, "policy_source": "policy"}}
}

// Of is a policy that was built with package policy.
func Of(p policy.Policy) Policy {
	return Policy{fields: map[string]any{"policy_text": string(p.Canonical()), "policy_source": "policy"}}
}
