package engines

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// validate runs the part of critest that needs no registry, with the runtime class psi.
func (c *containerd) validate(t *testing.T, critest string) {
	append(c.ctr(), "--namespace", "k8s.io").must(t, "image", "import", "--snapshotter", "native", archive(t, built.busybox))
	skipped, err := readSkips("critest.txt")
	if err != nil {
		t.Fatal(err)
	}
	images := c.dir + "/images.yaml"
	if err := os.WriteFile(images, []byte("defaultTestContainerImage: "+busyboxImage+"\nwebServerTestImage: "+busyboxImage+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	args := c.inNetwork(critest, "-config", c.dir+"/crictl.yaml", "-runtime-endpoint", "unix://"+c.sock, "-runtime-handler", "psi",
		"-test-images-file", images, "-ginkgo.no-color", "-ginkgo.seed", "1", "-ginkgo.skip", strings.Join(skipped, "|"))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+c.dir)
	out, err := cmd.CombinedOutput()
	summary := regexp.MustCompile(`(?m)^Ran \d+ of \d+ Specs.*\n.*$`).FindString(string(out))
	t.Log(summary)
	if err != nil {
		t.Errorf("critest: %v\n%s\n%s", err, summary, failures(string(out)))
	}
	var passed int
	fmt.Sscanf(regexp.MustCompile(`\d+ Passed`).FindString(string(out)), "%d", &passed)
	if passed < leastSpecs {
		t.Errorf("%d specifications passed, want at least %d:\n%s", passed, leastSpecs, lastLines(string(out), 20))
	}
}

// leastSpecs is how many specifications must pass: fewer would mean that a skip takes too many.
const leastSpecs = 60

// readSkips reads regular expressions of specifications that are not run; what follows a tab is the
// reason.
func readSkips(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var skips []string
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		text := lines.Text()
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		pattern, reason, found := strings.Cut(text, "\t")
		if !found || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: want a regular expression, a tab and the reason, got %q", path, number, text)
		}
		skips = append(skips, pattern)
	}
	return skips, lines.Err()
}

// failures are the lines of ginkgo's output that name what failed.
func failures(out string) string {
	_, summary, found := strings.Cut(out, "Summarizing")
	if !found {
		return lastLines(out, 60)
	}
	return summary
}
