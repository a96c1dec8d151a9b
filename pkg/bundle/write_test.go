package bundle

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// smallRoot is a root filesystem of a few files, with all that Inspect wants.
func smallRoot(t *testing.T, dir string) RootfsInfo {
	t.Helper()
	info := anyRoot()
	for _, entry := range []string{"usr/bin/python3.11", "usr/bin/python3 -> python3.11", "lib -> usr/lib", "usr/lib/psi/agent.pyc",
		"usr/lib/psi/entry.py", "proc/", "dev/", "sys/", "tmp/", "srv/", "home/"} {
		if err := makeEntry(dir, entry); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, infoFile), data, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	info.Path = dir
	if got != info {
		t.Fatalf("Inspect: %+v, want %+v", got, info)
	}
	return got
}

// files lists a tree: paths, types, permissions, contents or targets.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := entry.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(path, dir) + " " + st.Mode().String()
		switch {
		case st.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(data)
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + target
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWrite(t *testing.T) {
	old := syscall.Umask(0o077) // a bundle has to be readable whatever the umask is
	defer syscall.Umask(old)
	r := smallRoot(t, t.TempDir())
	script := filepath.Join(t.TempDir(), "job.py")
	if err := os.WriteFile(script, []byte("print(1)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := Entry{Script: script}
	v := View{
		Mounts: []ViewMount{
			{Source: "/srv/in", Dest: "/srv/in", Dir: true},
			{Source: "/srv/in/w", Dest: "/srv/in/w", Dir: true, Write: true}, // in the host's directory
			{Source: "/srv/job/a.csv", Dest: "/srv/job/deep/a.csv"},
			{Source: "/tmp/x/y", Dest: "/tmp/x/y"}, // in the guest's tmpfs
			{Source: "/usr/share/doc/x", Dest: "/usr/share/doc/x", Dir: true},
		},
		Dirs: []string{"/lib/empty", "/srv/job"},
	}
	spec := compile(t, policy.Defaults(), v, e)
	dir := filepath.Join(t.TempDir(), "bundle")
	if err := Write(dir, spec, r, v, e); err != nil {
		t.Fatal(err)
	}
	got := files(t, filepath.Join(dir, rootDir))
	for _, want := range []string{
		" drwxr-xr-x", "/lib Lrwxrwxrwx usr/lib", "/usr/bin/python3 Lrwxrwxrwx python3.11", "/usr/lib/empty drwxr-xr-x",
		"/srv/in drwxr-xr-x", "/srv/job drwxr-xr-x", "/srv/job/deep drwxr-xr-x", "/srv/job/deep/a.csv -rw-r--r-- ", "/usr/share/doc/x drwxr-xr-x",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
	for _, line := range got {
		if strings.HasPrefix(line, "/srv/in/") || strings.HasPrefix(line, "/tmp/") {
			t.Errorf("mount point in another mount: %s", line)
		}
	}
	if !sameFile(t, filepath.Join(r.Path, "usr/bin/python3.11"), filepath.Join(dir, "rootfs/usr/bin/python3.11")) {
		t.Error("the interpreter is not a hard link")
	}
	top := files(t, dir)
	if !slices.Contains(top, "/entry.py -rw-r--r-- print(1)\n") || !strings.HasPrefix(top[1], "/config.json -rw-r--r-- {") {
		t.Errorf("top: %q", top[:2])
	}
	var back specs.Spec
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &back)
	}
	if err != nil || back.Annotations[RootfsKey] != r.Digest {
		t.Errorf("config.json: %v", err)
	}
	second := filepath.Join(t.TempDir(), "bundle")
	if err := Write(second, compile(t, policy.Defaults(), v, e), r, v, e); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(files(t, dir), files(t, second)) {
		t.Error("two bundles of the same input differ")
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	first, err1 := os.Stat(a)
	second, err2 := os.Stat(b)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return os.SameFile(first, second)
}

// The root of another file system is copied.
func TestWriteCopies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	other := t.TempDir()
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(other, unix.MNT_DETACH) })
	r := smallRoot(t, other)
	dir := t.TempDir() // empty: as good as one that does not exist
	if err := Write(dir, compile(t, policy.Defaults(), View{}, Entry{}), r, View{}, Entry{}); err != nil {
		t.Fatal(err)
	}
	name := "usr/bin/python3.11"
	a, err1 := os.Stat(filepath.Join(other, name))
	b, err2 := os.Stat(filepath.Join(dir, rootDir, name))
	if err1 != nil || err2 != nil || os.SameFile(a, b) || a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) {
		t.Errorf("the copy differs: %v %v %v %v", err1, err2, a, b)
	}
}

func TestWriteRefuses(t *testing.T) {
	fifo := func(name string) string { return name + "|" }
	tests := map[string]struct {
		before []string // in the bundle's directory
		inRoot string   // one more entry of the root
		view   View
		script string // an entry, run as the script
		want   string
	}{
		"a directory in use":        {before: []string{"x"}, want: `holds "x": name a new or an empty one`},
		"a FIFO in the root":        {inRoot: fifo("srv/p"), want: "files, directories and links only"},
		"a file for a directory":    {view: View{Mounts: []ViewMount{{Source: "/srv/x", Dest: "/usr/bin/python3.11/x"}}}, want: "has no place"},
		"a directory for a file":    {view: View{Mounts: []ViewMount{{Source: "/srv/x", Dest: "/srv"}}}, want: "something else than a file"},
		"a link that leads out":     {inRoot: "srv/out -> /etc", view: View{Mounts: []ViewMount{{Source: "/srv/x", Dest: "/srv/out/x"}}}, want: "has no place"},
		"a link that climbs":        {inRoot: "srv/up -> ../../..", view: View{Dirs: []string{"/srv/up/x"}}, want: "has no place"},
		"a link at the mount point": {inRoot: "srv/out -> /etc/passwd", view: View{Mounts: []ViewMount{{Source: "/srv/x", Dest: "/srv/out"}}}, want: "something else than a file"},
		"no script":                 {script: "missing.py", want: "no such file"},
		"a script that is a FIFO":   {script: fifo("p"), want: "not a regular file"},
		"a script that is a dir":    {script: "d/", want: "not a regular file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := smallRoot(t, t.TempDir())
			if tt.inRoot != "" {
				if err := makeEntry(r.Path, tt.inRoot); err != nil {
					t.Fatal(err)
				}
			}
			var e Entry
			if tt.script != "" {
				at := t.TempDir()
				if tt.script != "missing.py" {
					if err := makeEntry(at, tt.script); err != nil {
						t.Fatal(err)
					}
				}
				e.Script = filepath.Join(at, strings.TrimRight(tt.script, "|/"))
			}
			dir := filepath.Join(t.TempDir(), "bundle")
			for _, entry := range tt.before {
				if err := makeEntry(dir, entry); err != nil {
					t.Fatal(err)
				}
			}
			rootBefore := files(t, r.Path)[0]
			err := Write(dir, compile(t, policy.Defaults(), View{}, Entry{}), r, tt.view, e)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if files(t, r.Path)[0] != rootBefore {
				t.Error("the root was changed")
			}
			_, statErr := os.Stat(dir)
			if gone := os.IsNotExist(statErr); gone != (len(tt.before) == 0) {
				t.Errorf("the directory after the error: %v", statErr)
			}
		})
	}
}

func TestInspectErrors(t *testing.T) {
	good := `{"python":"3.11","interpreter":"/usr/bin/python3.11","agent":"/usr/lib/psi/agent.pyc","digest":"` + anyRoot().Digest + `"}`
	for name, tt := range map[string]struct{ json, want string }{
		"no JSON":                {"x", "invalid character"},
		"another digest":         {strings.Replace(good, "sha256:", "md5:", 1), "digest"},
		"a short digest":         {strings.Replace(good, "cdef", "", 1), "digest"},
		"no version":             {strings.Replace(good, "3.11", "", 1), "version"},
		"a climbing agent":       {strings.Replace(good, "/usr/lib/psi/agent.pyc", "/usr/../../agent.pyc", 1), "not an absolute path inside"},
		"an agent that is not":   {strings.Replace(good, "agent.pyc", "agents.pyc", 1), "agents.pyc"},
		"an agent that is a dir": {strings.Replace(good, "/usr/lib/psi/agent.pyc", "/usr/lib/psi", 1), "not a regular file"},
		"too much":               {good + strings.Repeat(" ", maxInfoFile), "larger than"},
	} {
		dir := t.TempDir()
		smallRoot(t, dir)
		if err := os.WriteFile(filepath.Join(dir, infoFile), []byte(tt.json), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Inspect(dir)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "psi-runtime rootfs build") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := Inspect(filepath.Join(t.TempDir(), "missing")); err == nil || !strings.Contains(err.Error(), "rootfs build") {
		t.Errorf("missing: %v", err)
	}
	// A description or an interpreter outside of the root is not read.
	dir := t.TempDir()
	smallRoot(t, dir)
	os.Remove(filepath.Join(dir, "usr/bin/python3.11"))
	if err := os.Symlink("/usr/bin/env", filepath.Join(dir, "usr/bin/python3.11")); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(dir); err == nil {
		t.Error("an interpreter outside of the root was accepted")
	}
}
