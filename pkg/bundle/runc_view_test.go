package bundle_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

const viewScript = `
import json, os, sys

def tried(action):
    try:
        return action()
    except OSError as e:
        return os.strerror(e.errno)

def cat(path):
    with open(path) as f:
        return f.read()

def put(path):
    with open(path, "w") as f:
        f.write("by the guest")
    return "written"

dir = sys.argv[1]
print(json.dumps({
    "walk": sorted(os.path.relpath(os.path.join(at, name), dir) for at, dirs, files in os.walk(dir) for name in dirs + files),
    "read": tried(lambda: cat(dir + "/in/a.csv")),
    "secret": tried(lambda: cat(dir + "/in/secret")),
    "denied": tried(lambda: cat(dir + "/out/key")),
    "private": tried(lambda: cat(dir + "/in/private.csv")),
    "write": tried(lambda: put(dir + "/in/a.csv")),
    "write allowed": tried(lambda: put(dir + "/out/log")),
    "new file": tried(lambda: put(dir + "/free/new")),
    "new name": tried(lambda: put(dir + "/out/new")),
    "link": tried(lambda: cat(dir + "/v7/x")),
    "up": tried(lambda: cat(dir + "/free/../secret")),
    "escape": tried(lambda: cat(dir + "/free/link/passwd-of-host")),
    "set-uid": tried(lambda: os.chmod(dir + "/free/new", 0o4755)),
    "owner": os.stat(dir + "/in/a.csv").st_uid,
}))
`

type viewReport struct {
	Walk                                                   []string
	Read, Secret, Denied, Private, Write, Link, Up, Escape string
	WriteAllowed                                           string `json:"write allowed"`
	NewFile                                                string `json:"new file"`
	NewName                                                string `json:"new name"`
	SetUID                                                 string `json:"set-uid"`
	Owner                                                  int
}

// Plain runc shows the files of a policy too. Before 1.2 it does not know "idmap": all owners
// are nobody (65534), and what only the client may read or write is beyond reach.
func TestRuncViews(t *testing.T) {
	for name, base := range map[string]func() string{
		"in the root":            func() string { return "/srv" },
		"in the guest's own tmp": func() string { return "/tmp" },
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(base(), "psi-bundle-view-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			testViews(t, dir)
		})
	}
}

func testViews(t *testing.T, dir string) {
	for path, mode := range map[string]os.FileMode{
		"in/a.csv": 0o644, "in/secret": 0o644, "in/private.csv": 0o600, "in/new\nline.csv": 0o644, "secret": 0o644,
		"out/log": 0o666, "out/key": 0o644, "v7/x": 0o644, "free/old": 0o644,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("by the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "free"), 0o777),
		os.Symlink("../v7", filepath.Join(dir, "in", "out.csv")),
		os.Symlink("/etc", filepath.Join(dir, "free", "link")),
		unix.Mkfifo(filepath.Join(dir, "in", "fifo.csv"), 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p := policy.Defaults()
	for pattern, mode := range map[string]policy.FSMode{
		"/in/*.csv": policy.Read, "/out": policy.Write, "/out/key": policy.Deny, "/free/**": policy.Write, "/v7": policy.Read,
	} {
		var err error
		if p, err = p.AllowFS(dir+pattern, mode); err != nil {
			t.Fatal(err)
		}
	}
	out := guest{policy: p, script: viewScript, args: []string{dir}}.run(t).ok(t)
	var got viewReport
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	private, owner := "Permission denied", uint32(bundle.PlaceholderID)
	switch got.Owner {
	case 65534:
	case 0:
		private, owner = "by the host", 0
	default:
		t.Errorf("the guest sees the owner %d", got.Owner)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "free", "new"), &st); err != nil || st.Uid != owner {
		t.Errorf("what the guest made belongs to %d: %v", st.Uid, err)
	}
	walk := []string{"free", "free/link", "free/old", "in", "in/a.csv", "in/new\nline.csv", "in/private.csv", "out", "out/log", "v7", "v7/x"}
	if a, b := mustJSON(t, got.Walk), mustJSON(t, walk); a != b {
		t.Errorf("the guest sees %s, want %s", a, b)
	}
	const missing = "No such file or directory"
	for what, pair := range map[string][2]string{
		"read": {got.Read, "by the host"}, "secret": {got.Secret, missing}, "denied": {got.Denied, missing},
		"private": {got.Private, private}, "write": {got.Write, "Read-only file system"},
		"write allowed": {got.WriteAllowed, "written"}, "new file": {got.NewFile, "written"},
		"link": {got.Link, "by the host"}, "up": {got.Up, missing}, "escape": {got.Escape, missing},
		"set-uid": {got.SetUID, "Operation not permitted"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
	if got.NewName == "written" {
		if _, err := os.Stat(filepath.Join(dir, "out", "new")); err == nil {
			t.Error("a file was made beside what is shown file by file")
		}
	}
	for name, want := range map[string]string{"out/log": "by the guest", "free/new": "by the guest", "in/a.csv": "by the host"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s holds %q on the host: %v", name, data, err)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
