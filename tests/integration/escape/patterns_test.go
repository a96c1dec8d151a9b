package escape

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const patternPolicy = `{fs: [{read: "VOLUME/**/*.csv"}, {write: "VOLUME/out/*.txt"}, {deny: "/**/*.key"}, {deny: "/etc/pass*"}]%s}`

// patternBundle is a container of an engine with a volume at its own path, of which
// patterns open parts.
func patternBundle(t *testing.T) (bundle, volume string) {
	t.Helper()
	source, err := os.ReadFile("testdata/patterns.py")
	if err != nil {
		t.Fatal(err)
	}
	bundle = engineBundle(t, fmt.Sprintf(patternPolicy, ""), func(c config) {
		for _, m := range c["mounts"].([]config) {
			if m["destination"] == "/srv/volume" {
				volume = m["source"].(string)
				m["destination"] = volume
			}
		}
		c["process"].(config)["args"] = []string{"/usr/bin/python3.11", "-I", "-c", string(source), volume}
	})
	for _, name := range []string{"a.csv", "sub/b.csv", "sub/x.csv.key", "sub/dir.key/c.csv", "out/old.txt"} {
		write(t, filepath.Join(volume, name), "text", 0o666)
	}
	if err := os.Symlink("secret", filepath.Join(volume, "link.csv")); err != nil {
		t.Fatal(err)
	}
	return bundle, volume
}

// opened says what comes of the attempts that are no escape; all others get EACCES.
var opened = map[string][]string{
	"match": {"open"}, "deep-match": {"open"}, "write": {"open"}, "rename": {"open"}, "own-file": {"open"}, "own-program": {"open"}, "own-flags": {"open"},
	"list":  {"a.csv,link.csv,out,public,secret,sub"}, // names can be seen
	"times": {"open"},                                 // of a volume that is not read-only: no hook of the kernel knows the path
	"xattr": {"EPERM"}, "io-uring": {"a ring", "EPERM", "ENOSYS"},
	"image-rename": {"EACCES", "EROFS"}, "mapping": {"EACCES", "EPERM"},
}

// Where the kernel takes LSM programs, patterns hold in a container that an engine made;
// elsewhere it does not start.
func TestEnginePatterns(t *testing.T) {
	watched(t)
	bundle, volume := patternBundle(t)
	got := run(t, bundle)
	if got.code == 1 && os.Getenv("PSI_TEST_VM") == "" {
		if !strings.Contains(got.stderr, "needs BPF-LSM programs") || !strings.Contains(got.stderr, "deny /**/*.key") || got.stdout != "" {
			t.Errorf("%+v", got)
		}
		return
	}
	checkPatterns(t, got)
	for name, want := range map[string]string{"secret": "secret", "a.csv": "text", "sub/b.csv": "text"} {
		if data, err := os.ReadFile(filepath.Join(volume, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}

	// A process that joins later is held too.
	source, err := os.ReadFile("testdata/patterns.py")
	if err != nil {
		t.Fatal(err)
	}
	bundle, volume = patternBundle(t)
	edit(t, bundle, func(c config) {
		c.at("process")["args"] = []string{"/usr/bin/python3.11", "-I", "-c", "import time; time.sleep(600)"}
	})
	id := detach(t, bundle)
	checkPatterns(t, invoke(t, program(t), "exec", "--cap", "CAP_SYS_ADMIN", "--cap", "CAP_DAC_READ_SEARCH", id, "/usr/bin/python3.11", "-I", "-c", string(source), volume))
	if state := invoke(t, program(t), "state", id).stdout; !strings.Contains(state, "BPF-LSM") {
		t.Error(state)
	}
}

func checkPatterns(t *testing.T, got result) {
	t.Helper()
	lines := 0
	for line := range strings.Lines(got.stdout) {
		name, verdict, _ := strings.Cut(strings.TrimSpace(line), " ")
		want, ok := opened[name]
		if !ok {
			want = []string{"EACCES"}
		}
		if !slices.Contains(want, verdict) {
			t.Errorf("%s: %s, want %q", name, verdict, want)
		}
		lines++
	}
	if got.code != 0 || lines != 37 {
		t.Errorf("exit code %d, %d attempts:\n%s%s", got.code, lines, got.stdout, got.stderr)
	}
}

// What nobody can hold on this machine is refused before anything of the image runs.
func TestEnginePatternsAreRefused(t *testing.T) {
	watched(t)
	for name, tc := range map[string]struct{ policy, want string }{
		"another place":       {`{fs: [{read: "VOLUME/*.csv"}]}`, "a pattern"},
		"at its other place":  {`{fs: [{read: "/srv/volume/*.csv"}]}`, "a pattern"},
		"part of it":          {`{fs: [{read: VOLUME}, {read: "/srv/volume/**/*.csv"}]}`, "a pattern"},
		"denied on the host":  {`{fs: [{read: VOLUME}, {read: /srv/volume}, {deny: "VOLUME/*.key"}]}`, "a pattern"},
		"denied as a whole":   {`{fs: [{read: VOLUME}, {read: /srv/volume}, {deny: "/**/volum?"}]}`, "deny /**/volum?"},
		"a name of the image": {`{fs: [{read: VOLUME}, {read: "/srv/volume/x*"}, {read: /srv/volume}]}`, "a pattern"},
	} {
		bundle := engineBundle(t, tc.policy)
		got := run(t, bundle)
		if got.code != 1 || !strings.Contains(got.stderr, "cannot be enforced") || !strings.Contains(got.stderr, tc.want) || strings.Contains(got.stdout, "allowed") {
			t.Errorf("%s: exit %d, %.500q", name, got.code, got.stderr)
		}
	}
}
