package decisions

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/leakcheck"
)

// table is testdata/cases.yml.
type table struct {
	Policy   []map[string]string
	Files    []string
	FIFOs    []string `yaml:"fifos"`
	Sockets  []string
	Symlinks map[string]string
	Links    map[string]string
	Deep     string
	Cases    []question
}

// question is one row.
type question struct {
	Do      string `json:"do"`
	Path    string `json:"path"`
	To      string `json:"to"`
	LSM     string `json:"-" yaml:"lsm"`
	Mounts  string `json:"-"`
	Because string `json:"-"`
}

// reply is what drive.py says.
type reply struct {
	Answers  []string
	Enforced []struct{ Rule, By string }
	Refused  []string // paths of DENIED events: below base without it, percent-encoded
	Untold   int      // denials without an event
}

func TestDecisions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests run containers: run them as root")
	}
	leakcheck.Check(t)
	asked := readTable(t)
	base := landscape(t, asked)
	got := ask(t, asked, base)
	mechanism := "mounts"
	for _, e := range got.Enforced {
		if e.Rule == "fs" && strings.Contains(e.By, "BPF-LSM") {
			mechanism = "BPF-LSM"
		}
		t.Logf("%s: %s", e.Rule, e.By)
	}
	if os.Getenv("PSI_TEST_VM") != "" && mechanism != "BPF-LSM" {
		t.Error("the second kernel has BPF-LSM, and the guest says it is held by mounts alone")
	}
	byKernel := 0
	for i, q := range asked.Cases {
		want := q.Mounts
		if mechanism == "BPF-LSM" {
			want = q.LSM
		}
		name := strings.TrimSpace(q.Do + " " + q.Path + " " + q.To)
		decided := got.decidedBy(q, got.Answers[i])
		if decided == "BPF-LSM" {
			byKernel++
		}
		t.Logf("%-9s %-60.60s %s", decided, name, got.Answers[i])
		if got.Answers[i] != want {
			t.Errorf("%s: %s says %s, want %s", mechanism, name, got.Answers[i], want)
		}
	}
	if mechanism == "BPF-LSM" && byKernel < 20 {
		t.Errorf("of %d cases, %d were told as refused by the programs, and %d denials untold", len(asked.Cases), byKernel, got.Untold)
	}
}

// decidedBy is what said no, as far as the guest's errors and the kernel's events show it.
func (r reply) decidedBy(q question, answer string) string {
	told := func(name string) bool {
		raw, err := url.PathUnescape(name)
		return err == nil && name != "" && slices.ContainsFunc(r.Refused, func(refused string) bool {
			path, err := url.PathUnescape(refused)
			// A file without a name is told of as #NUMBER.
			return err == nil && (path == filepath.Clean(raw) || q.Do == "tmpfile" && strings.HasPrefix(path, raw+"/#"))
		})
	}
	within := q.Path // a name in a directory that was opened before
	if slices.Contains([]string{"dirfd-read", "dirfd-create", "proc-cwd-read"}, q.Do) {
		within = filepath.Join(q.Path, q.To)
	}
	switch answer {
	case "ok":
		return "allowed"
	case "EPERM":
		switch q.Do {
		case "map-execute":
			return "mounts"
		case "setxattr":
			return "BPF-LSM"
		}
		return "seccomp"
	case "EACCES":
		// No mount is asked, and there is no path to be told: a memfd, a socket of the host's.
		if slices.Contains([]string{"execute-memfd", "pair-connect", "pair-send"}, q.Do) {
			return "BPF-LSM"
		}
		if told(within) || told(q.To) {
			return "BPF-LSM"
		}
	case "ENAMETOOLONG":
		return "kernel"
	}
	return "mounts" // hidden, read-only, or without execution
}

// TestTable checks that the two columns agree, or say why they do not.
func TestTable(t *testing.T) {
	for _, q := range readTable(t).Cases {
		if (q.LSM == "ok") != (q.Mounts == "ok") && q.Because == "" {
			t.Errorf("%s %s: the mechanisms decide differently, and nobody says why", q.Do, q.Path)
		}
		if (q.LSM == "ok") == (q.Mounts == "ok") && q.Because != "" {
			t.Errorf("%s %s: a difference is explained, and there is none", q.Do, q.Path)
		}
	}
}

func readTable(t *testing.T) table {
	t.Helper()
	data, err := os.ReadFile("testdata/cases.yml")
	if err != nil {
		t.Fatal(err)
	}
	var out table
	if err := yaml.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Cases) < 50 {
		t.Fatalf("%d cases", len(out.Cases))
	}
	return out
}

// landscape makes what the table names.
func landscape(t *testing.T, asked table) string {
	t.Helper()
	base, err := os.MkdirTemp("/srv", "psi-decisions-") // not /tmp: the guest has its own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(base, 0o755))
	at := func(name string) string {
		raw, err := url.PathUnescape(name)
		must(err)
		path := filepath.Join(base, raw)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		return path
	}
	for _, name := range asked.Files {
		must(os.WriteFile(at(name), make([]byte, 4096), 0o755))
	}
	for _, name := range asked.FIFOs {
		must(unix.Mkfifo(at(name), 0o666))
	}
	for _, name := range asked.Sockets {
		l, err := net.ListenPacket("unixgram", at(name))
		must(errors.Join(err, os.Chmod(at(name), 0o666)))
		t.Cleanup(func() { l.Close() })
	}
	for name, target := range asked.Symlinks {
		must(os.Symlink(target, at(name)))
	}
	for name, target := range asked.Links {
		must(os.Link(at(target), at(name)))
	}
	makeDeep(t, at(asked.Deep))
	return base
}

// makeDeep makes a file with a path of 4,095 bytes, step by step: no call takes a longer one.
func makeDeep(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range deepNames(dir) {
		dir += "/" + name
		if len(dir) == 4095 {
			if err := os.WriteFile(dir, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// deepNames are the components that fill a path up to 4,095 bytes.
func deepNames(dir string) []string {
	var names []string
	for left := 4095 - len(dir); left > 0; {
		n := min(left-1, 240)
		if left-1-n == 1 { // a slash alone would remain
			n--
		}
		names = append(names, strings.Repeat("d", n))
		left -= n + 1
	}
	return names
}

// ask runs the guest.
func ask(t *testing.T, asked table, base string) reply {
	t.Helper()
	var rules []any
	for _, rule := range asked.Policy {
		for mode, pattern := range rule {
			rules = append(rules, map[string]string{mode: strings.ReplaceAll(pattern, "${base}", base)})
		}
	}
	deep := asked.Deep + "/" + strings.Join(deepNames(filepath.Join(base, asked.Deep)), "/")
	cases := make([]question, len(asked.Cases))
	for i, q := range asked.Cases {
		switch q.Path {
		case "DEEP":
			q.Path = deep
		case "DEEPER":
			q.Path = deep + "d"
		}
		cases[i] = q
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	data, err := json.Marshal(map[string]any{"fs": rules})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(policy, data, 0o644); err != nil {
		t.Fatal(err)
	}
	job, err := json.Marshal(map[string]any{"base": base, "policy": policy, "cases": cases})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3.11", "testdata/drive.py", string(job))
	cmd.Env = append(os.Environ(), "PYTHONPATH="+root(t, "python"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("asking a guest: %v\n%s", err, stderr.String())
	}
	var got reply
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	if len(got.Answers) != len(cases) {
		t.Fatalf("%d answers to %d questions", len(got.Answers), len(cases))
	}
	return got
}

// root is a path of the checkout.
func root(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../..", path))
	if err != nil {
		t.Fatal(err)
	}
	return path
}
