package confine

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run -tags seccomp ./gen

// Ready returns the name of s among the filters that pkg/bundle gives guests, which were
// compiled when psi was: libseccomp takes 6 ms for one, an eighth of a cold start. It is
// "" for every other filter.
func Ready(s *specs.LinuxSeccomp) (name string) {
	if s == nil {
		return ""
	}
	digest, err := Digest(s)
	if err != nil {
		return ""
	}
	entries, err := ready.ReadDir("filters")
	if err != nil {
		return "" // none for this architecture
	}
	for _, entry := range entries {
		if file, err := readReady(entry.Name()); err == nil && bytes.Equal(file[:sha256.Size], digest[:]) {
			return entry.Name()
		}
	}
	return ""
}

// Program is Compile for a filter that may be ready.
func Program(s *specs.LinuxSeccomp) ([]byte, error) {
	if name := Ready(s); name != "" {
		return ReadyProgram(name)
	}
	return Compile(s)
}

// ReadyProgram is the program of the filter that Ready returned the name of. After psi
// has changed it is the one that goes by the name now.
func ReadyProgram(name string) ([]byte, error) {
	file, err := readReady(name)
	if err != nil {
		return nil, fmt.Errorf("reading the seccomp filter %q: %w", name, err)
	}
	return file[sha256.Size:], nil
}

// readReady reads a file that gen wrote: the digest of a filter, and its program.
func readReady(name string) ([]byte, error) {
	file, err := ready.ReadFile("filters/" + name)
	if err == nil && len(file) <= sha256.Size {
		err = fmt.Errorf("%d bytes are none", len(file))
	}
	return file, err
}

// Digest tells filters apart.
func Digest(s *specs.LinuxSeccomp) ([sha256.Size]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encoding a seccomp filter: %w", err)
	}
	return sha256.Sum256(text), nil
}
