package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// clone copies a specification, so that nothing of the engine's is shared, and fills
// in the parts that a policy writes to.
func clone(spec *specs.Spec) (*specs.Spec, error) {
	if spec == nil || spec.Root == nil || spec.Process == nil {
		return nil, errors.New("config.json: root and process must be set")
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("copying the specification: %w", err)
	}
	out := &specs.Spec{}
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("copying the specification: %w", err)
	}
	if out.Linux == nil {
		out.Linux = &specs.Linux{}
	}
	return out, nil
}

// size writes bytes as documents do.
func size(bytes int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if bytes != 0 && bytes%u.bytes == 0 {
			return strconv.FormatInt(bytes/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}
