package policy

import (
	"strings"
	"testing"
)

func TestFormat(t *testing.T) {
	const ugly = `# the head

version: 1
sandboxes:
    # the base
    base:   # of all
        tcp: ["127.0.0.1:6379"] # redis
        mem:   256MiB
        fs:
        # data
        - read:  "/srv/data/**/*.csv"
        - deny:  '/srv/a # b'    # not "these"
        # the end of fs
    job: {extends: base, mem: 64MiB}
# for all
defaults: {imports: [math, json]}   # two
# the foot
`
	const pretty = `# the head

version: 1

# for all
defaults: {imports: [math, json]} # two
`
	out, err := Format([]byte(ugly), "p.yml")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(out), pretty) {
		t.Errorf("got\n%s", out)
	}
	if again, err := Format(out, "p.yml"); err != nil || string(again) != string(out) {
		t.Errorf("%v: a second time\n%s\nafter\n%s", err, again, out)
	}
	for _, comment := range []string{"# the head", "# the base", "# of all", "# redis", "# data", `# not "these"`, "# the end of fs", "# for all", "# two", "# the foot"} {
		if strings.Count(string(out), comment) != 1 {
			t.Errorf("%s is there %d times", comment, strings.Count(string(out), comment))
		}
	}
}

func TestFormatForms(t *testing.T) {
	for text, want := range map[string]string{
		`{"pids":1,"fs":["/srv/<a>"]}`:             "{\n  \"pids\": 1,\n  \"fs\": [\n    \"/srv/<a>\"\n  ]\n}\n",
		"pids: 1\nmem: 64MiB":                      "mem: 64MiB\npids: 1\n",
		"\uFEFFpids: 1\r\n":                        "pids: 1\n",
		"fs: &a [/srv/a]\nimports: []\ncpu: 1":     "fs: &a [/srv/a]\nimports: []\ncpu: 1\n",
		"version: 1.0\nnet: []\nfs: [{allow: /a}]": "version: 1.0\nfs: [{allow: /a}]\nnet: []\n",
	} {
		out, err := Format([]byte(text), "p.yml")
		if err != nil || string(out) != want {
			t.Errorf("%q: %v\n%s", text, err, out)
		}
	}
	if _, err := Format([]byte("pids: 0"), "p.yml"); err == nil || !strings.HasPrefix(err.Error(), "p.yml:1:7: pids") {
		t.Errorf("got %v", err)
	}
	for _, name := range Names() {
		data, err := builtinData(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Format(data, name); err != nil {
			t.Error(err)
		}
	}
}
