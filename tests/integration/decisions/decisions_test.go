package decisions

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

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
	Network  struct {
		TCP    []any `yaml:"tcp"`
		Expose []int
		Cases  []question
	}
}

// question is one row.
type question struct {
	Do      string   `json:"do"`
	Path    string   `json:"path"`
	To      string   `json:"to"`
	LSM     string   `json:"-" yaml:"lsm"`
	Mounts  string   `json:"-"`
	By      deciders `json:"-"`
	Because string   `json:"-"`
}

// deciders are who refuses: one for both columns, or one for each.
type deciders struct{ LSM, Mounts string }

func (d *deciders) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		d.LSM, d.Mounts = node.Value, node.Value
		return nil
	}
	var each struct{ LSM, Mounts string }
	err := node.Decode(&each)
	*d = each
	return err
}

// column is what a row says of the mechanism that holds file rules: the answer, and who gives it.
func (q question) column(mechanism string) (answer, by string) {
	if mechanism == byLSM {
		return q.LSM, q.By.LSM
	}
	return q.Mounts, q.By.Mounts
}

func TestDecisions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests run containers: run them as root")
	}
	leakcheck.Check(t)
	asked := readTable(t)
	base, ports := landscape(t, asked), listenAt(t)
	files := ask(t, base, asked.filesPolicy(base), asked.fileQuestions(base, ports))
	mechanism := byMounts
	if files.heldBy("fs", byLSM) {
		mechanism = byLSM
	}
	if os.Getenv("PSI_TEST_VM") != "" && mechanism != byLSM {
		t.Error("the second kernel has BPF-LSM, and the guest says it is held by mounts alone")
	}
	network := ask(t, base, asked.networkPolicy(ports), asked.networkQuestions(ports))
	out := newReport(t, mechanism)
	compare(t, out, mechanism, "Files", asked.Cases, files)
	compare(t, out, mechanism, "Network", asked.Network.Cases, network)
	out.write(t)
}

// compare holds what was seen against the table.
func compare(t *testing.T, out *report, mechanism, title string, rows []question, got reply) {
	t.Helper()
	out.section(title, got)
	for i, q := range rows {
		want, wantBy := q.column(mechanism)
		name := strings.TrimSpace(q.Do + " " + q.Path + " " + q.To)
		answer, by := got.Seen[i].Answer, got.decidedBy(i, q.Do)
		out.row(name, answer, by)
		if answer != want || by != wantBy {
			t.Errorf("%s: %s says %s by %q, want %s by %q", mechanism, name, answer, by, want, wantBy)
		}
	}
	if got.Untold > 0 {
		t.Errorf("%s: %d denials were not told, and could be those of rows", title, got.Untold)
	}
}

// TestTable checks that the two columns agree, or say why they do not, and that each refusal says
// by whom.
func TestTable(t *testing.T) {
	asked := readTable(t)
	for _, q := range append(asked.Cases, asked.Network.Cases...) {
		if (q.LSM == "ok") != (q.Mounts == "ok") && q.Because == "" {
			t.Errorf("%s %s: the mechanisms decide differently, and nobody says why", q.Do, q.Path)
		}
		if (q.LSM == "ok") == (q.Mounts == "ok") && q.Because != "" {
			t.Errorf("%s %s: a difference is explained, and there is none", q.Do, q.Path)
		}
		for _, mechanism := range []string{byLSM, byMounts} {
			if answer, by := q.column(mechanism); (answer == "ok") != (by == "") || by == byNobody {
				t.Errorf("%s %s: %s is %s by %q", q.Do, q.Path, mechanism, answer, by)
			}
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
	if len(out.Cases) < 50 || len(out.Network.Cases) < 20 {
		t.Fatalf("%d cases of files, %d of the network", len(out.Cases), len(out.Network.Cases))
	}
	return out
}

// port puts the host's ports in the place of :+0 to :+9.
func port(text string, first int) string {
	return plus.ReplaceAllStringFunc(text, func(offset string) string { return strconv.Itoa(first + int(offset[1]-'0')) })
}

var plus = regexp.MustCompile(`\+[0-9]`)

func (asked table) filesPolicy(base string) map[string]any {
	var rules []any
	for _, rule := range asked.Policy {
		for mode, pattern := range rule {
			rules = append(rules, map[string]string{mode: strings.ReplaceAll(pattern, "${base}", base)})
		}
	}
	return map[string]any{"fs": rules}
}

func (asked table) fileQuestions(base string, ports int) []question {
	deep := asked.Deep + "/" + strings.Join(deepNames(filepath.Join(base, asked.Deep)), "/")
	rows := slices.Clone(asked.Cases)
	for i := range rows {
		switch rows[i].Path {
		case "DEEP":
			rows[i].Path = deep
		case "DEEPER":
			rows[i].Path = deep + "d"
		default:
			rows[i].Path = port(rows[i].Path, ports)
		}
	}
	return rows
}

func (asked table) networkPolicy(ports int) map[string]any {
	tcp := make([]any, len(asked.Network.TCP))
	for i, entry := range asked.Network.TCP {
		switch entry := entry.(type) {
		case string:
			tcp[i] = port(entry, ports)
		case map[string]any:
			tcp[i] = map[string]any{"deny": port(entry["deny"].(string), ports)}
		}
	}
	return map[string]any{"tcp": tcp, "expose": asked.Network.Expose}
}

func (asked table) networkQuestions(ports int) []question {
	rows := slices.Clone(asked.Network.Cases)
	for i := range rows {
		rows[i].Path = port(rows[i].Path, ports)
	}
	return rows
}

// ask has a guest of the policy answer.
func ask(t *testing.T, base string, document map[string]any, rows []question) reply {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.json")
	data, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(policy, data, 0o644); err != nil {
		t.Fatal(err)
	}
	job, err := json.Marshal(map[string]any{"base": base, "policy": policy, "cases": rows})
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
	if len(got.Seen) != len(rows) {
		t.Fatalf("%d answers to %d questions", len(got.Seen), len(rows))
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
