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
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
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
	if !strings.HasPrefix(summary, "Ran "+specifications+" Specs") {
		t.Errorf("critest says %q, want %s specifications: a skip takes others than critest.txt means, or critest is another one", summary, specifications)
	}
}

// specifications is how many of critest's are left by critest.txt, and by critest itself, which asks
// containerd what it can: recursive read-only mounts it cannot.
const specifications = "61 of 113"

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
