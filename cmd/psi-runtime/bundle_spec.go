package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const specFile = "config.json"

// loadSpec reads a bundle's specification. The bundle's path is made absolute.
func loadSpec(bundle string) (*specs.Spec, string, error) {
	if bundle == "" {
		bundle = "."
	}
	dir, err := filepath.Abs(bundle)
	if err != nil {
		return nil, "", fmt.Errorf("finding bundle %s: %w", bundle, err)
	}
	path := filepath.Join(dir, specFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("JSON specification file %s not found: a bundle is a directory with a %s in it", path, specFile)
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading bundle: %w", err)
	}
	spec, err := decodeSpec(data)
	if err != nil {
		return nil, "", fmt.Errorf("reading %s: %w", path, err)
	}
	if spec == nil {
		return nil, "", fmt.Errorf("reading %s: config cannot be null", path)
	}
	return spec, dir, nil
}
