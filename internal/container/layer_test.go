package container

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLayer hides a program and a directory from a guest. It stays hidden when the layer
// is taken away, and the guest can do nothing about it.
func TestLayer(t *testing.T) {
	f := newFixture(t)
	layer := filepath.Join(filepath.Dir(testRoot), "layer-test")
	if err := MountLayer(layer, testRoot, []string{"usr/bin/id", "etc"}); err != nil {
		t.Fatal(err)
	}
	mounted := true
	defer func() {
		if mounted {
			UnmountLayer(layer)
		}
	}()
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(layer, "usr/bin/id"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("no whiteout: %v %o %d", err, st.Mode, st.Rdev)
	}
	if err := os.Remove(filepath.Join(layer, "usr/bin/id")); err == nil {
		t.Error("a whiteout could be taken out of the layer")
	}
	o := f.options(autoSpec(`look() { ls -d /bin/id /etc /bin/cat; for p in $(ls /bin); do case $p in cat|id|sleep) echo $p; esac; done; }
look; read go; cat /bin/id; (echo x >/bin/id); (echo x >/etc/x); look; echo end; sleep 1000`))
	o.Layer = layer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer feed.Close()
	o.Stdin, o.Stdout = in, w
	c := f.create(o)
	w.Close()
	in.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for !strings.HasSuffix(seen, "sleep") {
		seen += " " + line(t, r)
	}
	if err := UnmountLayer(layer); err != nil {
		t.Fatal(err)
	}
	mounted = false
	feed.WriteString("\n")
	for !strings.HasSuffix(seen, "end") {
		seen += " " + line(t, r)
	}
	if want := strings.Repeat(" /bin/cat cat sleep", 2) + " end"; seen != want {
		t.Errorf("the guest saw %q, want %q", seen, want)
	}
	if _, err := os.Lstat(layer); !os.IsNotExist(err) {
		t.Errorf("the layer's directory is left: %v", err)
	}
}

func TestLayerOfWhatIsNotThere(t *testing.T) {
	layer := filepath.Join(filepath.Dir(testRoot), "layer-test")
	if err := MountLayer(layer, testRoot, []string{"no/such/file"}); err == nil {
		t.Fatal("a file in a directory that is not there was hidden")
	}
	if _, err := os.Lstat(layer); !os.IsNotExist(err) {
		t.Errorf("the layer's directory is left: %v", err)
	}
}

// TestCover shows a running guest what a layer hides, takes that back, and hides more.
func TestCover(t *testing.T) {
	f := newFixture(t)
	layer, narrow := filepath.Join(filepath.Dir(testRoot), "layer-test"), filepath.Join(filepath.Dir(testRoot), "layer-narrow")
	for dir, hidden := range map[string][]string{layer: {"usr/bin/id"}, narrow: {"usr/bin/cat", "usr/bin/id"}} {
		if err := MountLayer(dir, testRoot, hidden); err != nil {
			t.Fatal(err)
		}
		defer UnmountLayer(dir)
	}
	o := f.options(autoSpec(`while read go; do echo $(for p in $(ls /bin); do case $p in cat|id|sleep) echo $p; esac; done) $(id -u 2>/dev/null); done`))
	o.Layer = layer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer feed.Close()
	o.Stdin, o.Stdout = in, w
	c := f.create(o)
	w.Close()
	in.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	look := func(when, want string) {
		t.Helper()
		feed.WriteString("\n")
		if got := line(t, r); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	var over Covers
	cover := func(layer string) *Applied {
		t.Helper()
		place := filepath.Join(filepath.Dir(testRoot), "cover-test")
		a, err := c.Apply(Change{Cover: &LiveLayer{Lower: testRoot, Layer: layer, Dirs: []string{"usr/bin"}, Place: place, Over: &over}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(place); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", place, err)
		}
		return a
	}
	mounts := func(what string, want int) {
		t.Helper()
		data, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/mountinfo")
		if got := bytes.Count(data, []byte("\n")); got != want || err != nil {
			t.Errorf("%s: %d mounts, %v, want %d", what, got, err, want)
		}
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Count(data, []byte("\n"))
	look("at first", "cat sleep")
	whole := cover("")
	look("with all of it", "cat id sleep 0")
	if err := whole.Undo(); err != nil {
		t.Fatal(err)
	}
	look("taken back", "cat sleep")
	mounts("taken back", before)
	cover("").Keep()
	less := cover(narrow)
	look("with less", "sleep")
	if err := less.Undo(); err != nil {
		t.Fatal(err)
	}
	look("with all of it again", "cat id sleep 0")
	cover(narrow).Keep()
	look("with less for good", "sleep")
	mounts("after several changes", before+1)
	if _, err := c.Apply(Change{Cover: &LiveLayer{Lower: testRoot, Layer: layer, Dirs: []string{"usr/lib"}, Over: &over}}); err == nil {
		t.Error("what was covered could be uncovered")
	}
	cover(layer).Keep()
	look("as at first", "cat sleep")
}

// TestLayerOver is killed, so to speak, between making a layer and taking it away: it goes with the
// container. A link in the root file system leads nowhere.
func TestLayerOver(t *testing.T) {
	f := newFixture(t)
	lower := filepath.Join(t.TempDir(), "lower")
	if err := os.MkdirAll(filepath.Join(lower, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(lower, "link")); err != nil {
		t.Fatal(err)
	}
	c := f.create(f.options(autoSpec("sleep 1000")))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(lower)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for range 2 {
		cover, done, err := c.LayerOver(root, []string{"a/b"}, []string{"usr", "link"})
		if err != nil {
			t.Fatal(err)
		}
		if trees, err := coverTrees(*cover); err == nil {
			closeTrees(trees)
			t.Error("a directory that is not there was shown")
		}
		cover.Dirs = []string{"a", "link"}
		trees, err := coverTrees(*cover)
		closeTrees(trees)
		if !errors.Is(err, unix.ELOOP) || len(trees) != 1 {
			t.Errorf("%d directories, %v", len(trees), err)
		}
		if err := done(); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := c.LayerOver(root, []string{"no/such"}, nil); err == nil {
		t.Error("a file that is not there was hidden")
	}
	if _, _, err := c.LayerOver(root, []string{"a/b"}, nil); err != nil {
		t.Error(err)
	}
}
