package enforce

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/pkg/policy"
)

// pathEnd is PATH_END of path.h.
const pathEnd = 80 + 4096

// matcher is match.bpf.c in the kernel: the matcher of the LSM programs, run on
// paths that the test chooses.
type matcher struct {
	t       testing.TB
	objects bpf.MatchObjects
	tables  []*ebpf.Map
}

func newMatcher(t testing.TB) *matcher {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	m := &matcher{t: t}
	if err := bpf.LoadMatchObjects(&m.objects, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { m.objects.Close() })
	m.tables = []*ebpf.Map{m.objects.TablesSmall, m.objects.TablesMedium, m.objects.TablesLarge, m.objects.TablesHuge}
	return m
}

// install puts a table into the kernel.
func (m *matcher) install(a *policy.Automaton) pathTable {
	m.t.Helper()
	table, err := newPathTable(a)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := putTable(m.tables[table.size], table); err != nil {
		m.t.Fatal(err)
	}
	return table
}

func (m *matcher) ask(table pathTable, path string) {
	m.t.Helper()
	var q bpf.MatchPathQuestion
	q.Table.Digest, q.Size = table.id, table.size
	q.Path.Start = uint32(pathEnd - len(path))
	for i := range 4 { // whatever was in the buffer before: only the step's rest is zero
		q.Path.Bytes[i] = 0xff
	}
	copy(q.Path.Bytes[q.Path.Start:], path)
	if err := m.objects.Question.Put(uint32(0), q); err != nil {
		m.t.Fatal(err)
	}
}

// verdict runs the program on one path.
func (m *matcher) verdict(table pathTable, path string) uint16 {
	m.t.Helper()
	m.ask(table, path)
	got, err := m.objects.Match.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		m.t.Fatal(err)
	}
	return uint16(got)
}

var alphabet = []string{"a", "b", "c", "ab", "srv", "x.csv", ".git", "é", "\n", "\xff", " (deleted)", "*", "[", "?", "#1"}

func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(5) {
		b.WriteString("/")
		for range 1 + r.IntN(2) {
			b.WriteString(alphabet[r.IntN(len(alphabet))])
		}
	}
	return b.String()
}

func randomRules(r *rand.Rand) []policy.FSRule {
	parts := []string{"a", "b", "ab", "*", "?", "a*", "*b", "[ab]", "[!a]", "**", "*.csv", "c", "srv", "**"}
	modes := []policy.FSMode{policy.Read, policy.Write, policy.Write, policy.Deny}
	var rules []policy.FSRule
	for len(rules) < 1+r.IntN(6) {
		pattern := "/" + []string{"srv", "a", "b"}[r.IntN(3)]
		for range r.IntN(4) {
			pattern += "/" + parts[r.IntN(len(parts))]
		}
		rules = append(rules, policy.FSRule{Mode: modes[r.IntN(len(modes))], Pattern: pattern})
	}
	return rules
}

var ownRules = []policy.FSRule{
	{Mode: policy.Execute, Pattern: "/usr"}, {Mode: policy.Write, Pattern: "/tmp"}, {Mode: policy.Write, Pattern: "/a"}, {Mode: policy.Read, Pattern: "/b/*"},
}

// TestMatcherAgrees compares the kernel's program with the Go automaton and with
// the reference, on random rules and paths.
func TestMatcherAgrees(t *testing.T) {
	m := newMatcher(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	rounds, pairs := 150, 0
	if runtime.NumCPU() < 4 && os.Getenv("PSI_TEST_VM") != "" {
		rounds = 30
	}
	for range rounds {
		rules := randomRules(r)
		a, err := policy.CompileGuest(ownRules, rules, policy.Places(rules))
		if err != nil {
			t.Fatalf("%v: %v", rules, err)
		}
		table := m.install(a)
		for range 100 {
			path := randomPath(r)
			checkDirectory(t, rules, path, m.agrees(a, table, rules, path), r)
			pairs++
		}
		m.remove(table)
	}
	t.Logf("%d pairs of rules and path", pairs)
}

// agrees returns the kernel's verdict on a path, which must be the automaton's and the reference's.
func (m *matcher) agrees(a *policy.Automaton, table pathTable, rules []policy.FSRule, path string) uint16 {
	m.t.Helper()
	const access = uint16(policy.MayRead | policy.MayWrite | policy.Denied | policy.MayExecute | policy.Own)
	want := policy.DecideGuest(ownRules, rules, policy.Places(rules), path)
	got := m.verdict(table, path)
	if got&access != uint16(want) || a.Decide(path) != want {
		m.t.Fatalf("%v: %q: kernel %#x, automaton %v, reference %v", rules, path, got, a.Decide(path), want)
	}
	return got
}

// FuzzMatcher looks for rules and paths on which the kernel's program, the automaton
// and the reference do not agree. Each line is a rule: r, w or d and its pattern.
func FuzzMatcher(f *testing.F) {
	for _, seed := range [][2]string{
		{"r/srv/*.csv\nd/srv/**/.git", "/srv/a/.git"}, {"w/a/**/[!x]?\nr/a/b", "/a/b/c/yz"}, {"r/srv/[a-c\xff]*\nd/tmp/\xc3?", "/tmp/\xc3\xa9"},
		{"w/**/a/**/b", "/srv/a/b/a/c/b"}, {"r/srv/a (deleted)", "/srv/a (deleted)/b"}, {"d/a\nw/a/b*c", "/a/bxc"},
	} {
		f.Add(seed[0], seed[1])
	}
	m := newMatcher(f)
	modes := map[byte]policy.FSMode{'r': policy.Read, 'w': policy.Write, 'd': policy.Deny}
	f.Fuzz(func(t *testing.T, text, path string) {
		var rules []policy.FSRule
		for line := range strings.Lines(text) {
			if line = strings.TrimSuffix(line, "\n"); line == "" || modes[line[0]] == "" || len(rules) == 8 {
				return
			}
			rules = append(rules, policy.FSRule{Mode: modes[line[0]], Pattern: line[1:]})
		}
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.Contains(path, "\x00") || path != "/" && strings.HasSuffix(path, "/") || len(path) > 4095 {
			return // the kernel hands out no such path
		}
		a, err := policy.CompileGuest(ownRules, rules, policy.Places(rules))
		if err != nil {
			return
		}
		m := matcher{t, m.objects, m.tables}
		table := m.install(a)
		defer m.remove(table)
		m.agrees(a, table, rules, path)
	})
}

func (m *matcher) remove(table pathTable) {
	if err := m.tables[table.size].Delete(table.id); err != nil {
		m.t.Fatal(err)
	}
}

// checkDirectory looks for a path below one that contradicts what its verdict says
// about everything below.
func checkDirectory(t *testing.T, rules []policy.FSRule, path string, verdict uint16, r *rand.Rand) {
	t.Helper()
	for range 10 {
		below := path + randomPath(r)
		access := policy.DecideGuest(ownRules, rules, policy.Places(rules), below)
		if access&policy.MayRead != 0 && verdict&mayList == 0 {
			t.Fatalf("%v: %q may not be listed, and %q may be read", rules, path, below)
		}
		if access&policy.MayWrite == 0 && verdict&mayMove != 0 {
			t.Fatalf("%v: %q may be moved, and %q may not be written", rules, path, below)
		}
	}
}

// TestMatcherVerdicts has the cases that random ones may miss.
func TestMatcherVerdicts(t *testing.T) {
	m := newMatcher(t)
	rules := []policy.FSRule{
		{Mode: policy.Read, Pattern: "/srv/data/*.csv"}, {Mode: policy.Write, Pattern: "/srv/out/**"}, {Mode: policy.Deny, Pattern: "/srv/out/keep/*.key"},
		{Mode: policy.Write, Pattern: "/srv/part/*"}, {Mode: policy.Read, Pattern: "/tmp/job"}, {Mode: policy.Read, Pattern: "/srv/long/**"},
	}
	own := []policy.FSRule{{Mode: policy.Execute, Pattern: "/usr"}, {Mode: policy.Write, Pattern: "/tmp"}}
	a, err := policy.CompileGuest(own, rules, policy.Places(rules))
	if err != nil {
		t.Fatal(err)
	}
	table := m.install(a)
	const r, w, x, denied, private = uint16(policy.MayRead), uint16(policy.MayWrite), uint16(policy.MayExecute), uint16(policy.Denied), uint16(policy.Own)
	longest := "/srv/long/" + strings.Repeat("a/", 2042) + "a" // 4,095 bytes: PATH_MAX with its NUL
	for path, want := range map[string]uint16{
		"/": mayList, "/srv": mayList, "/srvx": 0, "/srv/data": mayList, "/srv/dat": 0, "/srv/data/a.csv": r, "/srv/data/a.txt": 0, "/srv/data/a\n.csv": r, "/srv/data/\xff.csv": r,
		"/srv/data/a.csv (deleted)": 0, "/srv/data/sub/a.csv": 0,
		"/srv/out": r | w | mayList, "/srv/out/a": r | w | mayList | mayMove, "/srv/out/keep": r | w | mayList, "/srv/out/keep/a.key": denied, "/srv/out/keep/b": r | w | mayList | mayMove,
		"/srv/part": mayList, "/srv/part/a": r | w, "/srv/part/a/b": 0,
		"/usr": r | x | mayList, "/usr/bin/python3": r | x | mayList, "/tmp": r | w | private | mayList, "/tmp/a": r | w | private | mayList | mayMove,
		"/tmp/job": r | mayList, "/tmp/job/a": r | mayList, "/etc": 0,
		longest: r | mayList, longest + "b": r | mayList, "/srv/lung" + longest[9:]: 0,
	} {
		if got := m.verdict(table, path); got != want {
			t.Errorf("%.60q: %#x, want %#x", path, got, want)
		}
	}
	unknown := table
	unknown.id[0]++
	if got := m.verdict(unknown, "/tmp/a"); got != 0 {
		t.Errorf("a table that is not there allows %#x", got)
	}
	unknown = table
	unknown.size = 4
	if got := m.verdict(unknown, "/tmp/a"); got != 0 {
		t.Errorf("a size that does not exist allows %#x", got)
	}
}

// thousand are rules of the kinds that people write.
func thousand() []policy.FSRule {
	var rules []policy.FSRule
	for i := range 200 {
		rules = append(rules,
			policy.FSRule{Mode: policy.Read, Pattern: fmt.Sprintf("/srv/data/%x-%d", i*7919, i)},
			policy.FSRule{Mode: policy.Read, Pattern: fmt.Sprintf("/home/u%d/*.ext%d", i, i)},
			policy.FSRule{Mode: policy.Read, Pattern: fmt.Sprintf("/w%d/**/f%d.py", i, i)},
			policy.FSRule{Mode: policy.Write, Pattern: fmt.Sprintf("/srv/out/job-%d/**", i)},
			policy.FSRule{Mode: policy.Deny, Pattern: fmt.Sprintf("/srv/out/job-%d/private", i)})
	}
	return rules
}

// TestTableOfThousandRules bounds the size of a large policy, and uses it.
func TestTableOfThousandRules(t *testing.T) {
	m := newMatcher(t)
	a, err := policy.CompileGuest(ownRules, thousand(), policy.Places(thousand()))
	if err != nil {
		t.Fatal(err)
	}
	table := m.install(a)
	if len(table.data) > 1<<20+headSize {
		t.Errorf("%d bytes", len(table.data))
	}
	t.Logf("1,000 rules: %d states, %d wide, %d KiB in the kernel", a.States(), a.Width, len(table.data)>>10)
	if got := m.verdict(table, "/w7/lib/python/f7.py"); got&uint16(policy.MayRead) == 0 {
		t.Errorf("verdict %#x", got)
	}
}

// BenchmarkTableOfThousandRules makes the kernel's table of a large policy.
func BenchmarkTableOfThousandRules(b *testing.B) {
	for b.Loop() {
		a, err := policy.CompileGuest(ownRules, thousand(), policy.Places(thousand()))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := newPathTable(a); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMatch runs the kernel's matcher; the time of one match is reported.
func BenchmarkMatch(b *testing.B) {
	m := newMatcher(b)
	a, err := policy.CompileGuest(ownRules, thousand(), policy.Places(thousand()))
	if err != nil {
		b.Fatal(err)
	}
	table := m.install(a)
	for _, n := range []int{30, 200, 4095} {
		b.Run(fmt.Sprintf("%d bytes", n), func(b *testing.B) {
			m.ask(table, "/w7/"+strings.Repeat("d", n-len("/w7//f7.py"))+"/f7.py")
			_, mean, err := m.objects.Match.Benchmark(make([]byte, 64), b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(mean.Nanoseconds()), "ns/match")
		})
	}
}

// TestTableSharesDigest makes the same table from rules that mean the same.
func TestTableSharesDigest(t *testing.T) {
	places := []string{"/srv/a", "/srv/b"}
	one, err := policy.CompileGuest(ownRules, []policy.FSRule{{Mode: policy.Read, Pattern: "/srv/a"}, {Mode: policy.Write, Pattern: "/srv/b"}}, places)
	if err != nil {
		t.Fatal(err)
	}
	two, err := policy.CompileGuest(ownRules, []policy.FSRule{{Mode: policy.Write, Pattern: "/srv/b/**"}, {Mode: policy.Read, Pattern: "/srv/a"}, {Mode: policy.Write, Pattern: "/srv/b"}}, places)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := newPathTable(one)
	b, errB := newPathTable(two)
	if errA != nil || errB != nil || a.id != b.id {
		t.Errorf("%x and %x, %v %v", a.id, b.id, errA, errB)
	}
}
