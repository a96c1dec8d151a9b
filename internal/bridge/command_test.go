package bridge

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/policy"
)

func parsed(t *testing.T, line string) command {
	t.Helper()
	c, err := parseCommand(strings.Fields(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return c
}

func TestCommandsThatAreKnown(t *testing.T) {
	c := parsed(t, "/usr/bin/podman --root /x --runtime psi-runtime run -i --rm image run")
	got := strings.Join(c.with("--cidfile=f"), " ")
	if !c.known() || got != "/usr/bin/podman --root /x --runtime psi-runtime run --cidfile=f -i --rm image run" {
		t.Errorf("flags went elsewhere: %s", got)
	}
	if global := strings.Join(c.words[1:c.run], " "); global != "--root /x --runtime psi-runtime" {
		t.Errorf("global flags: %s", global)
	}
	if !parsed(t, "docker run --interactive image").known() || !parsed(t, "podman container run -i image").known() {
		t.Error("docker run and podman container run are not known")
	}
	for _, line := range []string{"kubectl attach -i pod", "podman attach guest", "ssh host podman run -i image"} {
		if parsed(t, line).known() {
			t.Errorf("%s: nothing can be known of its container", line)
		}
	}
}

func TestCommandsThatCannotWork(t *testing.T) {
	for line, says := range map[string]string{
		"":                                  "no command",
		"podman run image":                  "without -i",
		"podman run -it image":              "terminal",
		"docker run -i -d image":            "-d cannot be used",
		"podman run -i --cidfile=x image":   "--cidfile cannot be used",
		"podman run -i --detach image":      "--detach cannot be used",
		"podman run -i --detach=true image": "--detach cannot be used",
	} {
		if _, err := parseCommand(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func mustParse(t *testing.T, text string) policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPolicyBecomesFlags(t *testing.T) {
	p := mustParse(t, `{"mem": "64MiB", "cpu": 0.5, "pids": 7, "open_files": 33, "tmp": 0, "imports": ["json"], "message": 2048}`)
	flags, err := policyFlags(parsed(t, "podman run -i image"), p, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--memory=67108864", "--memory-swap=67108864", "--cpus=0.5", "--pids-limit=7", "--ulimit=nofile=33:33", "--network=none",
		"--cap-drop=all", "--read-only", "--tmpfs=/tmp:ro,noexec,nosuid,nodev,size=65536,mode=1777", "--user=65532:65532",
		`--env=PSI_CONFIG={"imports":["json"],"message":2048,"output":16777216}`, "--annotation=io.psi.policy=" + string(p.Canonical()),
	} {
		if !slices.Contains(flags, want) {
			t.Errorf("no %s in %q", want, flags)
		}
	}
	split, err := policyFlags(parsed(t, "podman run -i image"), p, true)
	if want := `--annotation="io.psi.policy=` + strings.ReplaceAll(string(p.Canonical()), `"`, `""`) + `"`; err != nil || !slices.Contains(split, want) {
		t.Errorf("for a podman that splits: %q, %v", split, err)
	}
}

// The last of two flags counts, so one in the command would undo the policy's.
func TestPolicyRefusesFlagsOfItsOwn(t *testing.T) {
	for _, flag := range []string{
		"--memory 1g", "--memory=1g", "-m 1g", "--memory-swap=-1", "--cpus 8", "--pids-limit=-1", "--read-only=false",
		"--read-only-tmpfs", "--ulimit nofile=9:9", "--ulimit=nofile=9",
	} {
		_, err := policyFlags(parsed(t, "podman run -i "+flag+" image"), policy.Defaults(), false)
		if !errors.Is(err, control.ErrPolicy) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	flags, err := policyFlags(parsed(t, "podman run -i --network=pasta --userns auto --ulimit nproc=9 image"), policy.Defaults(), false)
	if err != nil || given(flags, "--network") || given(flags, "--user") {
		t.Errorf("what the command chose was chosen again: %q, %v", flags, err)
	}
}

func TestPolicyThatNoEngineHolds(t *testing.T) {
	closed := parsed(t, "podman run -i --network none image")
	open := parsed(t, "podman run -i --network=pasta -v /a:/b:ro image")
	for _, name := range policy.Names() {
		p, err := policy.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := expressible(closed, p); (err != nil) != (len(p.TCP()) > 0) {
			t.Errorf("%s, which opens %v: %v", name, p.TCP(), err)
		}
	}
	for text, key := range map[string]string{
		`{"fs": ["/srv/data/*.csv"]}`: "fs", `{"tcp": ["127.0.0.1:80"]}`: "tcp", `{"tcp": ["127.0.0.1:80"], "allow_degraded": true}`: "tcp",
	} {
		if err := expressible(closed, mustParse(t, text)); !errors.Is(err, control.ErrPolicy) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", text, err)
		}
		if err := expressible(open, mustParse(t, text)); err != nil {
			t.Errorf("%s where the engine's command has a mount and a network: %v", text, err)
		}
	}
}

func TestTailIsBoundedAndPrintable(t *testing.T) {
	var s tail
	s.drain(strings.NewReader("first\x1b]0;owned\x07 \xff\n" + strings.Repeat("x", 1<<20) + "last\u202e"))
	text := s.String()
	if !strings.HasPrefix(text, `first\x1b]0;owned\a`) || !strings.HasSuffix(text, `last\u202e`) || len(text) > 3*kept {
		t.Errorf("%d bytes: %.40q … %.40q", len(text), text, text[len(text)-40:])
	}
}
