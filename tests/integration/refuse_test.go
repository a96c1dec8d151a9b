package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Bad input is an error that names the value and the way out, before a guest starts, and leaves nothing.
func TestRefusals(t *testing.T) {
	watched(t)
	dir := publicDir(t)
	file := func(text string) string {
		path := filepath.Join(dir, "p.yml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct{ name, policy, names string }{
		{"unknown key", "memory: 64MiB\n", "memory"},
		{"bad unit", "mem: 64 elephants\n", "elephants"},
		{"relative pattern", "fs: [data/*.csv]\n", "data/*.csv"},
		{"bad port", "tcp: ['127.0.0.1:99999']\n", "99999"},
		{"forbidden place", "fs: ['/proc/**']\n", "/proc"},
		{"missing directory", "fs: ['/no/such/place/*']\n", "/no/such/place"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := psi(t, "bundle", "--policy", file(test.policy), "--rootfs", rootfs(t), "-o", filepath.Join(dir, "out"))
			if got.code == 0 || !strings.Contains(got.stderr, test.names) {
				t.Errorf("exit %d, stderr %q: want an error that names %q", got.code, got.stderr, test.names)
			}
			if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
				t.Error("a bundle was left behind")
			}
		})
	}
	if got := psi(t, "bundle", "--policy", "no-such-name", "--rootfs", rootfs(t), "-o", filepath.Join(dir, "out")); got.code == 0 || !strings.Contains(got.stderr, "compute-only") {
		t.Errorf("an unknown name: exit %d, stderr %q: want the names there are", got.code, got.stderr)
	}
}

// A bundle whose policy cannot be read is refused at create, never run without it.
func TestForgedPolicyAnnotation(t *testing.T) {
	watched(t)
	bundle := bundleOf(t, "defaults", "print('ran')\n")
	path := filepath.Join(bundle, "config.json")
	for _, forged := range []string{"{", `{"mem": -1}`, `{"unknown": 1}`, ""} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var config specs.Spec // not a map: its floats would round the 64-bit masks of the seccomp rules
		if err := json.Unmarshal(data, &config); err != nil {
			t.Fatal(err)
		}
		config.Annotations["io.psi.policy"] = forged
		data, err = json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := psi(t, "run", "--bundle", bundle, newID(t)); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "io.psi.policy") {
			t.Errorf("policy %q: exit %d, stdout %q, stderr %q", forged, got.code, got.stdout, got.stderr)
		}
	}
}
