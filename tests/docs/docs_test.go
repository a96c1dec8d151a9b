// Package docs runs what the documentation shows: every `sh` and `python` block of README.md and
// docs/ is executed as it stands, from the checkout, in the order of the file.
//
// A block that needs more than this machine, or that CI runs anyway, is fenced as `console`
// instead; those are only looked at for commands that do not exist.
package docs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// block is one fenced block of a document.
type block struct {
	language, text string
	line           int
}

// fence finds fenced blocks with a language.
var fence = regexp.MustCompile("(?m)^```([a-z]+)\n((?s:.*?))^```$")

// TestBlocks runs the blocks of each document, in a directory of its own as the working directory.
func TestBlocks(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, document := range append(documents, filepath.Join(root, "README.md")) {
		data, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		work := t.TempDir()
		for _, b := range blocks(string(data)) {
			if b.language != "sh" && b.language != "python" {
				continue
			}
			ran++
			if out, err := run(t, root, work, b); err != nil {
				t.Errorf("%s:%d: the %s block fails: %v\n%s", filepath.Base(document), b.line, b.language, err, out)
			}
		}
	}
	if ran == 0 {
		t.Error("the documentation shows no command: the pattern no longer finds any")
	}
}

// TestTargets looks for `make X` in the documents whose X is no target.
func TestTargets(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)")
	for _, document := range []string{"README.md", "CONTRIBUTING.md"} {
		data, err := os.ReadFile(filepath.Join("../..", document))
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range named.FindAllStringSubmatch(string(data), -1) {
			if !strings.Contains(string(makefile), "\n"+match[1]+":") {
				t.Errorf("%s names `make %s`, which is no target", document, match[1])
			}
		}
	}
}

// blocks lists the fenced blocks of a document.
func blocks(text string) []block {
	var found []block
	for _, m := range fence.FindAllStringSubmatchIndex(text, -1) {
		found = append(found, block{language: text[m[2]:m[3]], text: text[m[4]:m[5]], line: 1 + strings.Count(text[:m[0]], "\n")})
	}
	return found
}

// run executes one block with the checkout's programs on PATH and its Python package importable.
func run(t *testing.T, root, work string, b block) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := []string{"bash", "-euo", "pipefail", "-c", b.text}
	if b.language == "python" {
		args = []string{"/usr/bin/python3.11", "-c", b.text}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"),
		"PYTHONPATH="+filepath.Join(root, "python"), "PSI_ROOTFS="+filepath.Join(root, "build/rootfs"), "CHECKOUT="+root, "TMPDIR="+work)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
