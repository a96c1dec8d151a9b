package view

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// tree makes files, and directories whose names end in "/", in a directory of their own.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "psi-view-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		place := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(place), 0o755)
		if err == nil && strings.HasSuffix(name, "/") {
			err = os.MkdirAll(place, 0o755)
		} else if err == nil {
			err = os.WriteFile(place, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// open opens what rules show.
func open(t *testing.T, rules ...policy.FSRule) Opened {
	t.Helper()
	var p policy.Policy
	var err error
	for _, r := range rules {
		if p, err = p.AllowFS(r.Pattern, r.Mode); err != nil {
			t.Fatal(err)
		}
	}
	view, err := Open(p, Identity{}, bundle.PlanView)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(view.Close)
	return view
}

// What PlanView resolved must not be resolved again.
func TestOpenSourceFollowsNoLink(t *testing.T) {
	dir := tree(t, "real/file")
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]bool{"/real": true, "/link": false, "/real/file": true, "/link/file": false} {
		file, err := openSource(bundle.ViewMount{Source: dir + source, Dir: !strings.HasSuffix(source, "file")}, Identity{})
		if (err == nil) != want {
			t.Errorf("%s: %v", source, err)
		}
		if err == nil {
			file.Close()
		}
	}
	// A file where a directory was, and the other way round.
	for source, isDir := range map[string]bool{"/real": false, "/real/file": true} {
		if file, err := openSource(bundle.ViewMount{Source: dir + source, Dir: isDir}, Identity{}); err == nil {
			t.Errorf("%s was opened as something else", source)
			file.Close()
		}
	}
}

// The rights are those of whom the guest is, and of no one else.
func TestOpenWithRightsOf(t *testing.T) {
	dir := tree(t, "theirs", "secret")
	if err := os.Chown(dir+"/theirs", 4321, 4321); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/theirs", "/secret"} {
		if err := os.Chmod(dir+name, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := policy.Policy{}.AllowFS(dir+name, policy.Write)
		if err != nil {
			t.Fatal(err)
		}
		view, err := Open(p, Identity{UID: 4321, GID: 4321}, bundle.PlanView)
		if name == "/theirs" {
			if err != nil {
				t.Error(err)
			}
			view.Close()
		} else if err == nil || !strings.Contains(err.Error(), "uid 4321 may not read and write it") {
			t.Errorf("%s: %v", name, err)
			view.Close()
		}
	}
	if unix.Geteuid() != 0 {
		t.Error("the test's own rights have changed")
	}
}

// What stays the same is not touched, unless something above it is.
func TestFromAnEarlierView(t *testing.T) {
	dir := tree(t, "a/x", "a/in/", "b/x")
	read := func(name string) policy.FSRule { return policy.FSRule{Mode: policy.Read, Pattern: dir + name} }
	write := func(name string) policy.FSRule { return policy.FSRule{Mode: policy.Write, Pattern: dir + name} }
	for name, tc := range map[string]struct {
		before, after []policy.FSRule
		hide, show    string
	}{
		"the same":       {[]policy.FSRule{read("/a"), read("/b")}, []policy.FSRule{read("/b"), read("/a")}, "", ""},
		"one more":       {[]policy.FSRule{read("/a")}, []policy.FSRule{read("/a"), read("/b")}, "", "/b"},
		"one less":       {[]policy.FSRule{read("/a"), read("/b")}, []policy.FSRule{read("/a")}, "/b", ""},
		"written":        {[]policy.FSRule{read("/a")}, []policy.FSRule{write("/a")}, "/a", "/a"},
		"one above":      {[]policy.FSRule{write("/a/in")}, []policy.FSRule{write("/a/in"), read("/a")}, "/a/in", "/a /a/in"},
		"none above":     {[]policy.FSRule{write("/a/in"), read("/a")}, []policy.FSRule{write("/a/in")}, "/a /a/in", "/a/in"},
		"beside, inside": {[]policy.FSRule{write("/a/in")}, []policy.FSRule{write("/a/in"), read("/a/x")}, "", "/a/x"},
	} {
		change := open(t, tc.after...).From(open(t, tc.before...).Shown)
		var hides, shows []string
		for _, m := range change.Hide {
			hides = append(hides, strings.TrimPrefix(m.Dest, dir))
		}
		for _, m := range change.Show {
			shows = append(shows, strings.TrimPrefix(m.Dest, dir))
		}
		if hide, show := strings.Join(hides, " "), strings.Join(shows, " "); hide != tc.hide || show != tc.show {
			t.Errorf("%s: hides %q and shows %q, not %q and %q", name, hide, show, tc.hide, tc.show)
		}
	}
	// Another file of the same name is not the same.
	before := open(t, read("/a/x"))
	if err := os.Rename(dir+"/b/x", dir+"/a/x"); err != nil {
		t.Fatal(err)
	}
	if change := open(t, read("/a/x")).From(before.Shown); len(change.Hide) != 1 || len(change.Show) != 1 {
		t.Errorf("a file that was replaced: %+v", change)
	}
}
