package escape

import (
	"strings"
	"testing"
)

// importAttempts wants modules that are not in the list, in ways that go around the
// interpreter's own importing. It uses what every root has.
const importAttempts = `
import sys, posix
library = "/usr/lib/python%d.%d" % sys.version_info[:2]

def content(path):
    fd = posix.open(path, posix.O_RDONLY)
    try:
        return posix.read(fd, 100)
    finally:
        posix.close(fd)

def source():
    exec(content(library + "/subprocess.py") or b"raise OSError(2, 'empty')", {})

def renamed():
    posix.rename(library + "/subprocess.py", "/tmp/x.py")
    return content("/tmp/x.py")

def linked():
    posix.link(library + "/subprocess.py", library + "/x.py")
    return content(library + "/x.py")

for name, attempt in {
    "subprocess": lambda: __import__("subprocess"), "bytecode": lambda: __import__("imp"), "package": lambda: __import__("xml.sax").sax.parse,
    "extension": lambda: __import__("_ctypes"), "source": source, "renamed": renamed, "linked": linked,
    "math": lambda: __import__("math"),
}.items():
    try:
        attempt()
        print(name, "open")
    except Exception as error:
        print(name, type(error).__name__)
`

// An import list of a container whose image is psi's is held by the files of the image:
// in the container that is made, and for who joins it.
func TestEngineImports(t *testing.T) {
	watched(t)
	bundle := func(policy string, args ...string) string {
		return engineBundle(t, policy, func(c config) {
			c["process"].(config)["args"] = args
			if policy == "" {
				delete(c["annotations"].(config), "io.psi.policy")
			}
		})
	}
	python := []string{"/usr/bin/python3.11", "-I", "-S", "-c", importAttempts}
	const list = "{imports: [math], fs: [{read: /srv/volume}, {read: VOLUME}]}"
	check := func(got result) {
		t.Helper()
		for line := range strings.Lines(got.stdout) {
			if name, verdict, _ := strings.Cut(strings.TrimSpace(line), " "); (verdict == "open") != (name == "math") {
				t.Error(line)
			}
		}
		if got.code != 0 || strings.Count(got.stdout, "\n") != 8 {
			t.Errorf("%+v", got)
		}
	}
	check(run(t, bundle(list, python...)))
	id := detach(t, bundle(list, "/usr/bin/python3.11", "-I", "-S", "-c", "import time; time.sleep(600)"))
	check(invoke(t, program(t), append([]string{"exec", id}, python...)...))
	if state := invoke(t, program(t), "state", id).stdout; !strings.Contains(state, "masked files of the image") {
		t.Error(state)
	}
	got := run(t, bundle("", python...))
	for _, name := range []string{"subprocess", "bytecode", "package", "extension", "source", "math"} {
		if !strings.Contains(got.stdout, name+" open\n") {
			t.Errorf("%s fails without a list too: %+v", name, got)
		}
	}
}
