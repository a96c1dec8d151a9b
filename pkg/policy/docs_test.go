package policy

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const reference = "../../docs/policy.md"

// fence is one fenced block of the reference.
type fence struct {
	language, info, text string // info is what stands behind the language
	line                 int
}

func readReference(t *testing.T) (fences []fence, rows [][]string) {
	t.Helper()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	var open *fence
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case open != nil && line == "```":
			fences = append(fences, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(line, "```"):
			language, info, _ := strings.Cut(line[3:], " ")
			open = &fence{language: language, info: info, line: i + 1}
		case strings.HasPrefix(line, "| "):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for j := range cells {
				cells[j] = strings.TrimSpace(cells[j])
			}
			rows = append(rows, cells)
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the block is not closed", reference, open.line)
	}
	return fences, rows
}

// code returns what stands between backquotes.
func code(cell string) (words []string) {
	for i, part := range strings.Split(cell, "`") {
		if i%2 == 1 {
			words = append(words, part)
		}
	}
	return words
}

// TestReferenceExamples parses every example of the reference. One that is
// followed by a text block is refused with exactly that text. The first JSON
// block means the same as the YAML before it; the last is a canonical form.
func TestReferenceExamples(t *testing.T) {
	fences, _ := readReference(t)
	var previous Policy
	good, bad, inJSON := 0, 0, 0
	for i, f := range fences {
		switch f.language {
		case "text":
			if (i == 0 || fences[i-1].language != "yaml") && !strings.HasPrefix(f.text, "$ ") { // what a running guest is needed for
				t.Errorf("%s:%d: a message without an example", reference, f.line)
			}
		case "yaml":
			if f.info != "" && !strings.HasPrefix(f.info, "bad") {
				good++
				if _, errs := ReadDocument([]byte(f.text), f.info); len(errs) > 0 {
					t.Errorf("%s:%d: %v", reference, f.line, errs)
				}
				continue
			} else if f.info != "" {
				continue // the commands below it say what is wrong
			}
			p, err := Parse([]byte(f.text), "policy.yml")
			if i+1 < len(fences) && fences[i+1].language == "text" {
				bad++
				if err == nil || err.Error()+"\n" != fences[i+1].text {
					t.Errorf("%s:%d:\n got %v\nwant %s", reference, f.line, err, fences[i+1].text)
				}
				continue
			}
			good++
			if err != nil {
				t.Errorf("%s:%d: %v", reference, f.line, err)
			}
			previous = p
		case "json":
			p, err := Parse([]byte(f.text), "policy.json")
			if err != nil {
				t.Errorf("%s:%d: %v", reference, f.line, err)
			}
			if inJSON++; inJSON == 1 && p.Digest() != previous.Digest() {
				t.Errorf("%s:%d: differs from the YAML before it", reference, f.line)
			}
			if inJSON == 2 && string(p.Canonical())+"\n" != f.text {
				t.Errorf("%s:%d: the canonical form is %s", reference, f.line, p.Canonical())
			}
		case "console": // run by the tests of cmd/psi-runtime
		case "python": // run by tests/docs
		default:
			t.Errorf("%s:%d: nothing checks a block of %q", reference, f.line, f.language)
		}
	}
	if good < 9 || bad < 8 || inJSON != 2 {
		t.Errorf("found only %d examples, %d errors, %d in JSON", good, bad, inJSON)
	}
}

// TestReferenceTables compares the tables of the reference with the code.
func TestReferenceTables(t *testing.T) {
	_, rows := readReference(t)
	keys, builtins, patterns := []string{"fs", "tcp", "udp", "expose", "imports", "seccomp", "isolation", "preload"}, []string(nil), 0
	var named []string
	for _, row := range rows {
		words := code(row[0])
		if len(words) == 0 || len(row) < 3 {
			continue // a heading, or a table that says nothing of the language
		}
		switch {
		case len(row) == 4 || len(row) == 3 && len(code(row[1])) == 1 && !strings.HasPrefix(words[0], "/"):
			keys = append(keys, words[0])
			checkDefault(t, words[0], code(row[1])[0])
			if len(row) == 4 {
				checkRange(t, words[0], row[2])
			}
		case len(row) == 5:
			builtins = append(builtins, words[0])
			if p := must(t)(Named(words[0])); formatSize(p.Limits().Mem) != row[1] {
				t.Errorf("%s: mem is %s, not %s", words[0], formatSize(p.Limits().Mem), row[1])
			}
		case len(code(row[1])) > 0:
			patterns++
			checkMatches(t, words[0], code(row[1]), code(row[2]))
		case strings.HasPrefix(words[0], "/"):
			named = append(named, words...)
			for _, word := range code(row[0]) {
				if CheckDir(strings.TrimSuffix(word, "*")) == nil {
					t.Errorf("%s is not forbidden", word)
				}
			}
		}
	}
	var known []string
	for _, key := range keyTable() {
		known = append(known, key.name)
	}
	slices.Sort(keys)
	slices.Sort(known)
	if !slices.Equal(keys, known) {
		t.Errorf("the reference has the keys %v, the parser %v", keys, known)
	}
	if !slices.Equal(builtins, Names()) {
		t.Errorf("the reference has the policies %v", builtins)
	}
	if patterns < 5 {
		t.Errorf("found only %d patterns", patterns)
	}
	for _, p := range places() {
		if !slices.Contains(named, p.path) && !slices.Contains(named, p.path+"*") {
			t.Errorf("the reference does not name %s", p.path)
		}
	}
}

func checkDefault(t *testing.T, key, value string) {
	t.Helper()
	p, err := Parse([]byte(key+": "+value), "default")
	if err != nil || p.Digest() != Defaults().Digest() {
		t.Errorf("%s: %s is not the default: %v", key, value, err)
	}
}

// checkRange tries the ends of a range and what is just beyond them.
func checkRange(t *testing.T, key, text string) {
	t.Helper()
	text, zero := strings.CutSuffix(text, ", or 0")
	low, high, found := strings.Cut(text, " to ")
	if !found {
		t.Fatalf("%s: no range in %q", key, text)
	}
	for _, value := range []string{low, high} {
		if _, err := Parse([]byte(key+": "+value), "range"); err != nil {
			t.Error(err)
		}
	}
	if _, err := Parse([]byte(key+": 0"), "range"); (err == nil) != zero {
		t.Errorf("%s: 0: %v", key, err)
	}
	if _, err := Parse([]byte(key+": 1"+high), "range"); err == nil {
		t.Errorf("%s: 1%s is accepted", key, high)
	}
	for _, k := range limitTable() {
		if k.key != key {
			continue
		}
		want := []string{formatSize(k.min), formatSize(k.max)}
		if !k.size {
			want = []string{strconv.FormatInt(k.min, 10), strconv.FormatInt(k.max, 10)}
		}
		if !slices.Equal(want, []string{low, high}) {
			t.Errorf("%s: the range is %v", key, want)
		}
	}
}

func checkMatches(t *testing.T, pattern string, yes, no []string) {
	t.Helper()
	if err := checkPattern(pattern); err != nil || len(yes) == 0 || len(no) == 0 {
		t.Errorf("%s: %v, %v, %v", pattern, err, yes, no)
	}
	for _, path := range yes {
		if !Match(pattern, path) {
			t.Errorf("%s does not match %s", pattern, path)
		}
	}
	for _, path := range no {
		if Match(pattern, path) {
			t.Errorf("%s matches %s", pattern, path)
		}
	}
}
