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
	"time"

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
	Imports struct {
		Allowed []string
		Cases   []question
	}
}

// question is one row.
type question struct {
	Do     string `json:"do"`
	Path   string `json:"path"`
	To     string `json:"to"`
	answer `json:"-" yaml:",inline"`
	// Bundle is what a bundle gets, where that does not follow from the rest: see inBundle.
	Bundle answer `json:"-"`
}

// answer is what a row says of each mechanism that holds file rules.
type answer struct {
	LSM     string `yaml:"lsm"`
	Mounts  string
	By      deciders
	Because string // the decisions differ
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

// column is the answer that a mechanism gives, and by whom.
func (a answer) column(mechanism string) (text, by string) {
	if mechanism == byLSM {
		return a.LSM, a.By.LSM
	}
	return a.Mounts, a.By.Mounts
}

// inBundle is column for a bundle: its files are mounts on every kernel, and LSM programs refuse beside them.
func (q question) inBundle(mechanism string) (text, by string) {
	if text, by = q.Bundle.column(mechanism); text != "" {
		return text, by
	}
	if text, by = q.column(byMounts); text != "ok" {
		return text, by
	}
	return q.column(mechanism)
}

// why says why a bundle's decision is another one than a guest's.
func (q question) why() string {
	if q.Bundle.Because != "" {
		return q.Bundle.Because
	}
	return q.Because
}

func (q question) name() string { return strings.TrimSpace(q.Do + " " + q.Path + " " + q.To) }

func TestDecisions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests run containers: run them as root")
	}
	leakcheck.Check(t)
	asked := readTable(t)
	ports := listenAt(t)
	guest, bundle := askAll(t, asked, ports, false), askAll(t, asked, ports, true)
	mechanism := byMounts
	if guest[0].heldBy("fs", byLSM) {
		mechanism = byLSM
	}
	if os.Getenv("PSI_TEST_VM") != "" && mechanism != byLSM {
		t.Error("the second kernel has BPF-LSM, and the guest says it is held by mounts alone")
	}
	if bundle[0].heldBy("fs", byLSM) != (mechanism == byLSM) {
		t.Errorf("a guest is held by %s, and a bundle by %v", mechanism, bundle[0].Enforced)
	}
	out := newReport(t, mechanism)
	for i, s := range asked.sections() {
		compare(t, out, mechanism, s, guest[i], bundle[i])
	}
	out.write(t)
}

// section is rows that are asked of one guest, and of one bundle.
type section struct {
	title string
	rows  []question
}

func (asked table) sections() []section {
	return []section{{"Files", asked.Cases}, {"Network", asked.Network.Cases}, {"Imports", asked.Imports.Cases}}
}

// askAll asks a guest for each section, or a bundle.
func askAll(t *testing.T, asked table, ports int, bundle bool) []reply {
	t.Helper()
	begun := time.Now()
	defer func() { t.Logf("asked in %.1f s (bundles: %v)", time.Since(begun).Seconds(), bundle) }()
	base := landscape(t, asked)
	jobs := []job{
		{Ask: "ask.py", Policy: document(t, asked.filesPolicy(base)), Cases: asked.fileQuestions(base, ports)},
		{Ask: "ask.py", Policy: document(t, asked.networkPolicy(ports)), Cases: asked.networkQuestions(ports)},
		{Ask: "ask_modules.py", Policy: document(t, map[string]any{"imports": asked.Imports.Allowed}), Cases: asked.importQuestions(t), Root: rootfs(t)},
	}
	for i := range jobs {
		if jobs[i].Base = base; bundle {
			jobs[i].Runtime, jobs[i].Rootfs = built(t, "PSI_RUNTIME", "bin/psi-runtime"), rootfs(t)
		}
	}
	return ask(t, jobs)
}

// compare holds what was seen against the table.
func compare(t *testing.T, out *report, mechanism string, s section, guest, bundle reply) {
	t.Helper()
	out.section(s.title, guest, bundle)
	for i, q := range s.rows {
		seen := make([]string, 0, 4)
		for _, asked := range []struct {
			whom string
			got  reply
			want func(string) (string, string)
		}{{"a guest", guest, q.column}, {"a bundle", bundle, q.inBundle}} {
			want, wantBy := asked.want(mechanism)
			text, by := asked.got.Seen[i].Answer, asked.got.decidedBy(i, q.Do)
			seen = append(seen, text, by)
			if text != want || by != wantBy {
				t.Errorf("%s: %s of %s says %s by %q, want %s by %q", mechanism, q.name(), asked.whom, text, by, want, wantBy)
			}
		}
		out.row(q, seen)
	}
	out.differences()
	if guest.Untold > 0 || bundle.Untold > 0 {
		t.Errorf("%s: %d and %d denials were not told, and could be those of rows", s.title, guest.Untold, bundle.Untold)
	}
}

// TestTable checks that the two columns agree, or say why they do not, and so do a guest and a bundle; and that
// each refusal says by whom.
func TestTable(t *testing.T) {
	asked := readTable(t)
	for _, q := range slices.Concat(asked.Cases, asked.Network.Cases, asked.Imports.Cases) {
		if (q.LSM == "ok") != (q.Mounts == "ok") && q.Because == "" {
			t.Errorf("%s: the mechanisms decide differently, and nobody says why", q.name())
		}
		if (q.LSM == "ok") == (q.Mounts == "ok") && q.Because != "" {
			t.Errorf("%s: a difference is explained, and there is none", q.name())
		}
		for _, mechanism := range []string{byLSM, byMounts} {
			guest, by := q.column(mechanism)
			if (guest == "ok") != (by == "") || by == byNobody {
				t.Errorf("%s: %s is %s by %q", q.name(), mechanism, guest, by)
			}
			bundle, by := q.inBundle(mechanism)
			if (bundle == "ok") != (by == "") || by == byNobody {
				t.Errorf("%s of a bundle: %s is %s by %q", q.name(), mechanism, bundle, by)
			}
			if (guest == "ok") != (bundle == "ok") && q.why() == "" {
				t.Errorf("%s: a bundle decides differently, and nobody says why", q.name())
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
	if len(out.Cases) < 50 || len(out.Network.Cases) < 20 || len(out.Imports.Cases) < 10 {
		t.Fatalf("%d cases of files, %d of the network, %d of imports", len(out.Cases), len(out.Network.Cases), len(out.Imports.Cases))
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

// importQuestions have the files of the modules that they name; those that are part of the interpreter have none.
func (asked table) importQuestions(t *testing.T) []question {
	t.Helper()
	rows := slices.Clone(asked.Imports.Cases)
	for i := range rows {
		for _, pattern := range []string{rows[i].Path + ".py", "lib-dynload/" + rows[i].Path + ".*.so"} {
			found, err := filepath.Glob(filepath.Join(rootfs(t), "usr/lib/python3.*", pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range found {
				rows[i].To = strings.TrimPrefix(file, rootfs(t))
			}
		}
		if rows[i].Do == "read" {
			rows[i].Path, rows[i].To = rows[i].To, ""
		}
	}
	return rows
}

// job is what drive.py is told.
type job struct {
	Base    string     `json:"base"`
	Policy  string     `json:"policy"`
	Cases   []question `json:"cases"`
	Ask     string     `json:"ask"`     // the file of the guest's part
	Root    string     `json:"root"`    // where the files of rows lie on the host; "" for those of the host
	Runtime string     `json:"runtime"` // runs a bundle; "" is a guest of a supervisor
	Rootfs  string     `json:"rootfs"`  // of the bundle
}

// document writes a policy to a file.
func document(t *testing.T, policy map[string]any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.json")
	data, err := json.Marshal(policy)
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// ask has a guest for each job answer, or a bundle.
func ask(t *testing.T, jobs []job) []reply {
	t.Helper()
	text, err := json.Marshal(jobs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3.11", "testdata/drive.py", string(text))
	cmd.Env = append(os.Environ(), "PYTHONPATH="+root(t, "python"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("asking a guest: %v\n%s", err, stderr.String())
	}
	var got []reply
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	for i, j := range jobs {
		if len(got) != len(jobs) || len(got[i].Seen) != len(j.Cases) {
			t.Fatalf("%d replies to %d jobs, or too few answers", len(got), len(jobs))
		}
	}
	return got
}

// built is the path of something built, which an environment variable may name.
func built(t *testing.T, variable, path string) string {
	t.Helper()
	if named := os.Getenv(variable); named != "" {
		return named
	}
	return root(t, path)
}

func rootfs(t *testing.T) string {
	t.Helper()
	return built(t, "PSI_ROOTFS", "build/rootfs")
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
