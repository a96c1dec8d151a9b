package policy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the messages of the corpus anew; read the difference")

// badDocument is one file of the corpus.
type badDocument struct {
	name string
	text []byte
	want string // file with the messages
}

func readCorpus(t *testing.T) []badDocument {
	t.Helper()
	files, err := filepath.Glob("testdata/bad/*.*")
	if err != nil {
		t.Fatal(err)
	}
	var all []badDocument
	for _, file := range files {
		if strings.HasSuffix(file, ".want") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, badDocument{filepath.Base(file), text, file + ".want"})
	}
	if len(all) < 80 {
		t.Fatalf("found only %d bad policies", len(all))
	}
	return all
}

// TestCorpus compares all messages about each bad policy with those that are
// written beside it.
func TestCorpus(t *testing.T) {
	for _, bad := range readCorpus(t) {
		var got strings.Builder
		for _, e := range CheckAll(bad.text, bad.name) {
			got.WriteString(e.Error() + "\n" + e.Excerpt())
		}
		if *update {
			if err := os.WriteFile(bad.want, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(bad.want)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() == "" || got.String() != string(want) {
			t.Errorf("%s:\n got %s\nwant %s", bad.name, got.String(), want)
		}
		_, err = Parse(bad.text, bad.name)
		if err == nil || !strings.Contains(got.String(), err.Error()+"\n") {
			t.Errorf("%s: Parse says %v", bad.name, err)
		}
	}
}
