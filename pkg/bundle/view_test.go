package bundle

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// tree is a directory for a test: "name/" is a directory, "name -> target" a
// symbolic link, "name|" a FIFO, "name=" a socket, else a file. Its path has no
// symbolic links in it and lies where a policy may point.
func tree(t *testing.T, entries ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if err := makeEntry(dir, entry); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func makeEntry(dir, entry string) error {
	name, target, link := strings.Cut(entry, " -> ")
	path := filepath.Join(dir, strings.TrimRight(name, "/|="))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	switch {
	case link:
		return os.Symlink(target, path)
	case strings.HasSuffix(name, "/"):
		return os.MkdirAll(path, 0o755)
	case strings.HasSuffix(name, "|"):
		return unix.Mkfifo(path, 0o666)
	case strings.HasSuffix(name, "="):
		// The path of a socket is short; the directory's may be long.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		at, err := os.Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		defer at.Close()
		return unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), filepath.Base(path))})
	}
	return os.WriteFile(path, []byte(name), 0o644)
}

// rules makes file rules from "read /x", with DIR for the directory.
func rules(dir string, lines ...string) []policy.FSRule {
	var out []policy.FSRule
	for _, line := range lines {
		mode, pattern, _ := strings.Cut(line, " ")
		out = append(out, policy.FSRule{Mode: policy.FSMode(mode), Pattern: strings.ReplaceAll(pattern, "DIR", dir)})
	}
	return out
}

// shown writes a view as lines: "read DIR/x", "write DIR/d/", "read DIR/link = DIR/file", "empty DIR/e".
func shown(dir string, v View) []string {
	var out []string
	for _, m := range v.Mounts {
		line := "read "
		if m.Write {
			line = "write "
		}
		line += m.Dest
		if m.Dir {
			line += "/"
		}
		if m.Source != m.Dest {
			line += " = " + m.Source
		}
		out = append(out, strings.ReplaceAll(line, dir, "DIR"))
	}
	for _, d := range v.Dirs {
		out = append(out, strings.ReplaceAll("empty "+d, dir, "DIR"))
	}
	return out
}

func TestPlanView(t *testing.T) {
	tests := map[string]struct {
		entries, rules, want []string
	}{
		"a file":                 {[]string{"a", "b"}, []string{"read DIR/a"}, []string{"read DIR/a"}},
		"a directory":            {[]string{"d/a", "d/e/b"}, []string{"read DIR/d"}, []string{"read DIR/d/"}},
		"all below":              {[]string{"d/a", "d/e/b"}, []string{"write DIR/d/**"}, []string{"write DIR/d/"}},
		"an empty directory":     {[]string{"d/"}, []string{"write DIR/d"}, []string{"write DIR/d/"}},
		"a glob":                 {[]string{"d/a.csv", "d/b.csv", "d/c.txt", "d/e/f.csv"}, []string{"read DIR/d/*.csv"}, []string{"read DIR/d/a.csv", "read DIR/d/b.csv", "empty DIR/d"}},
		"a glob of nothing":      {[]string{"d/"}, []string{"read DIR/d/*.csv"}, []string{"empty DIR/d"}},
		"a glob of directories":  {[]string{"d/e/f", "d/g"}, []string{"read DIR/d/*"}, []string{"read DIR/d/g", "empty DIR/d", "empty DIR/d/e"}},
		"a glob at any depth":    {[]string{"d/a.csv", "d/e/f/b.csv", "d/e/c"}, []string{"read DIR/d/**/*.csv"}, []string{"read DIR/d/a.csv", "read DIR/d/e/f/b.csv", "empty DIR/d"}},
		"a glob above all below": {[]string{"a/data/x", "b/data/y", "b/other/z"}, []string{"read DIR/*/data/**"}, []string{"read DIR/a/data/", "read DIR/b/data/", "empty DIR"}},
		"hidden names":           {[]string{"d/.a", "d/b"}, []string{"read DIR/d/*"}, []string{"read DIR/d/.a", "read DIR/d/b", "empty DIR/d"}},
		"a class":                {[]string{"d/a1", "d/a2", "d/b1"}, []string{"read DIR/d/[a]?"}, []string{"read DIR/d/a1", "read DIR/d/a2", "empty DIR/d"}},

		"a denied file":        {[]string{"d/a", "d/key"}, []string{"read DIR/d", "deny DIR/d/key"}, []string{"read DIR/d/a", "empty DIR/d"}},
		"a deny rule first":    {[]string{"d/a", "d/key"}, []string{"deny DIR/d/key", "read DIR/d"}, []string{"read DIR/d/a", "empty DIR/d"}},
		"a denied directory":   {[]string{"d/a", "d/s/key", "d/e/b"}, []string{"read DIR/d", "deny DIR/d/s"}, []string{"read DIR/d/a", "read DIR/d/e/", "empty DIR/d"}},
		"a denied glob":        {[]string{"d/a", "d/b.key", "d/e/c.key", "d/e/f"}, []string{"read DIR/d/**", "deny /**/*.key"}, []string{"read DIR/d/a", "read DIR/d/e/f", "empty DIR/d", "empty DIR/d/e"}},
		"deny what is not yet": {[]string{"d/a"}, []string{"write DIR/d", "deny DIR/d/key"}, []string{"write DIR/d/a", "empty DIR/d"}},
		"deny elsewhere":       {[]string{"d/a", "e/b"}, []string{"read DIR/d", "deny DIR/e/**"}, []string{"read DIR/d/"}},
		"deny everything":      {[]string{"d/a"}, []string{"read DIR/d/a", "read DIR/d/*", "deny DIR/**"}, nil},
		"below a denied one":   {[]string{"d/a/b"}, []string{"read DIR/d/a/b", "deny DIR/d/*"}, nil},
		"deny by the link":     {[]string{"real/key", "real/a", "link -> real"}, []string{"read DIR/real", "deny DIR/link/key"}, []string{"read DIR/real/a", "empty DIR/real"}},

		"a FIFO beside":           {[]string{"d/a", "d/p|", "d/e/b"}, []string{"read DIR/d"}, []string{"read DIR/d/a", "read DIR/d/e/", "empty DIR/d"}},
		"a socket deep below":     {[]string{"d/a", "d/e/f/s=", "d/e/g/b"}, []string{"read DIR/d"}, []string{"read DIR/d/a", "read DIR/d/e/g/", "empty DIR/d", "empty DIR/d/e", "empty DIR/d/e/f"}},
		"a FIFO that matches":     {[]string{"d/a", "d/p|", "d/s="}, []string{"read DIR/d/*"}, []string{"read DIR/d/a", "empty DIR/d"}},
		"a link in a directory":   {[]string{"d/a", "d/l -> a", "d/out -> /etc/shadow"}, []string{"read DIR/d"}, []string{"read DIR/d/"}},
		"a link that matches":     {[]string{"d/a", "d/l -> a"}, []string{"read DIR/d/*"}, []string{"read DIR/d/a", "read DIR/d/l = DIR/d/a", "empty DIR/d"}},
		"a link to what does not": {[]string{"d/a.csv", "d/secret", "d/l.csv -> secret"}, []string{"read DIR/d/*.csv"}, []string{"read DIR/d/a.csv", "empty DIR/d"}},
		"links that lead out": {[]string{"d/abs -> /etc/passwd", "d/up -> ../secret", "d/dir -> ..", "d/loop -> loop", "d/none -> x", "secret"},
			[]string{"read DIR/d/*", "read DIR/d/**/x*"}, []string{"empty DIR/d"}},
		"a link to a denied file": {[]string{"d/key", "d/l -> key"}, []string{"read DIR/d/*", "deny DIR/d/key"}, []string{"empty DIR/d"}},
		"a linked directory":      {[]string{"d/a/x.csv", "d/l -> a", "out/y.csv", "d/o -> ../out"}, []string{"read DIR/d/*/*.csv"}, []string{"read DIR/d/a/x.csv", "empty DIR/d"}},

		"twice":                       {[]string{"d/a"}, []string{"read DIR/d/a", "read DIR/d/*"}, []string{"read DIR/d/a", "empty DIR/d"}},
		"write wins":                  {[]string{"d/a"}, []string{"write DIR/d/a", "read DIR/d/*"}, []string{"write DIR/d/a", "empty DIR/d"}},
		"read in write":               {[]string{"d/a", "d/e/b"}, []string{"write DIR/d", "read DIR/d/e"}, []string{"write DIR/d/"}},
		"write in read":               {[]string{"d/a", "d/e/b"}, []string{"read DIR/d", "write DIR/d/e"}, []string{"read DIR/d/", "write DIR/d/e/"}},
		"a written file in read":      {[]string{"d/a", "d/b.log"}, []string{"read DIR/d", "write DIR/d/*.log"}, []string{"read DIR/d/", "write DIR/d/b.log"}},
		"a file in a directory":       {[]string{"d/a"}, []string{"read DIR/d", "read DIR/d/a"}, []string{"read DIR/d/"}},
		"names that begin alike":      {[]string{"d/a", "d2/b"}, []string{"read DIR/d", "read DIR/d2/b"}, []string{"read DIR/d/", "read DIR/d2/b"}},
		"a newline":                   {[]string{"d/a\nb", "d/c d"}, []string{"read DIR/d/*"}, []string{"read DIR/d/a\nb", "read DIR/d/c d", "empty DIR/d"}},
		"names that are not UTF-8":    {[]string{"d/a\xff", "d/b", "d/\xfe/c"}, []string{"read DIR/d/**/*"}, []string{"read DIR/d/b", "empty DIR/d"}},
		"not UTF-8, whole":            {[]string{"d/a\xff", "d/b"}, []string{"read DIR/d"}, []string{"read DIR/d/"}},
		"not UTF-8, with a FIFO":      {[]string{"d/a\xff", "d/b", "d/p|", "d/\xfe/c"}, []string{"read DIR/d"}, []string{"read DIR/d/b", "empty DIR/d"}},
		"a FIFO in what is not UTF-8": {[]string{"d/b", "d/\xfe/p|"}, []string{"read DIR/d"}, []string{"read DIR/d/b", "empty DIR/d"}},
		"wildcards in names":          {[]string{"d/a*", "d/a?", "d/ab"}, []string{"read DIR/d/a[*]"}, []string{"read DIR/d/a*", "empty DIR/d"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, tt.entries...)
			view, err := planView(rules(dir, tt.rules...), bounds{mounts: 100, entries: 1000})
			if err != nil {
				t.Fatal(err)
			}
			if got := shown(dir, view); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q\nnotes %q", got, tt.want, view.Notes)
			}
			again, err := planView(rules(dir, tt.rules...), bounds{mounts: 100, entries: 1000})
			if err != nil || !reflect.DeepEqual(view, again) {
				t.Errorf("the second plan differs: %+v %v", again, err)
			}
			if err := view.check(); err != nil {
				t.Errorf("the view cannot be compiled: %v", err)
			}
			for _, m := range view.Mounts {
				handle, err := OpenSource(m)
				if err != nil {
					t.Errorf("the view cannot be mounted: %v", err)
					continue
				}
				handle.Close()
			}
		})
	}
}

func TestPlanViewErrors(t *testing.T) {
	tests := map[string]struct {
		entries, rules []string
		path, text     string // of the error
	}{
		"missing file":       {nil, []string{"read DIR/a"}, "DIR/a", "does not exist on this host: create it first, or remove the rule"},
		"missing directory":  {nil, []string{"write DIR/out/**"}, "DIR/out", "does not exist"},
		"missing glob":       {nil, []string{"read DIR/in/*.csv"}, "DIR/in", "does not exist"},
		"dangling link":      {[]string{"l -> x"}, []string{"read DIR/l"}, "DIR/l", "does not exist"},
		"link loop":          {[]string{"l -> l"}, []string{"read DIR/l"}, "DIR/l", "cannot be looked up"},
		"a FIFO":             {[]string{"p|"}, []string{"read DIR/p"}, "DIR/p", "FIFOs, sockets and devices are never shown"},
		"a socket":           {[]string{"s="}, []string{"write DIR/s"}, "DIR/s", "FIFOs, sockets and devices are never shown"},
		"a file as the top":  {[]string{"f"}, []string{"read DIR/f/*"}, "DIR/f", "is a file, not a directory"},
		"a link to /proc":    {[]string{"l -> /proc/self"}, []string{"read DIR/l"}, "DIR/l", "forbidden place"},
		"a link to /":        {[]string{"l -> /"}, []string{"read DIR/l/**"}, "DIR/l", "forbidden place"},
		"a link to /etc":     {[]string{"l -> ../../../../../../../../etc"}, []string{"read DIR/l/*"}, "DIR/l", "forbidden place"},
		"below a magic link": {[]string{"l -> /proc/self/root"}, []string{"read DIR/l/proc/*"}, "DIR/l/proc", "forbidden place"},
		"not UTF-8":          {[]string{"a\xff", "l -> a\xff"}, []string{"read DIR/l"}, "DIR/l", "not text"},
		"a link at the end":  {[]string{"d/a", "out", "d/l -> ../out"}, []string{"read DIR/d", "read DIR/d/l"}, "DIR/d/l", "name DIR/out instead"},
		"a link to write by": {[]string{"v7/a", "current -> v7"}, []string{"write DIR/current"}, "DIR/current", "name DIR/v7 instead"},
		"a link on the way":  {[]string{"real/x/a.csv", "link -> real"}, []string{"read DIR/link/x/*.csv"}, "DIR/link/x", "name DIR/real/x instead"},
		"too many mounts":    {[]string{"d/a", "d/b", "d/c", "d/e", "d/f", "d/g"}, []string{"read DIR/d/?"}, "DIR/d", "takes more than 5 mounts"},
		"too many together":  {[]string{"d/a", "d/b", "e/a", "e/b"}, []string{"read DIR/d/?", "read DIR/e/?"}, "DIR/e", "one rule too many"},
		"too much to read":   {[]string{"d/a/b/c/1", "d/a/b/c/2", "d/a/b/c/3", "d/a/b/c/4", "d/a/b/c/5", "d/a/b/c/6"}, []string{"read DIR/d"}, "DIR/d", "holds too much to look through"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, tt.entries...)
			list := rules(dir, tt.rules...)
			_, err := planView(list, bounds{mounts: 5, entries: 8})
			var v *ViewError
			if !errors.As(err, &v) {
				t.Fatalf("got %v, want a *ViewError", err)
			}
			message := strings.ReplaceAll(err.Error(), dir, "DIR")
			if !strings.Contains(message, tt.text) || strings.ReplaceAll(v.Path, dir, "DIR") != tt.path {
				t.Errorf("path %q, %s", v.Path, message)
			}
			if rule := list[len(list)-1]; v.Rule != rule || !strings.Contains(err.Error(), rule.Pattern) {
				t.Errorf("the error is about %v, want %v", v.Rule, rule)
			}
		})
	}
}

func TestPlanViewNotes(t *testing.T) {
	dir := tree(t, "d/a", "d/b", "d/p|", "d/l -> /etc/passwd", "d/key", "w/a\xff", "w/x")
	view, err := planView(rules(dir, "read DIR/d", "read DIR/d/a", "write DIR/w/*", "deny DIR/d/key"), bounds{100, 100})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"fs: materialised: read DIR/d: 2 × mount; left out: 1 × denied name; left out: 1 × FIFO, socket or device; left out: 1 × symbolic link",
		"fs: mounted: read DIR/d/a",
		"fs: materialised: write DIR/w/*: 1 × mount; no new names can be made between them; left out: 1 × name that is not text",
	}
	for i, note := range view.Notes {
		view.Notes[i] = strings.ReplaceAll(note, dir, "DIR")
	}
	if !slices.Equal(view.Notes, want) {
		t.Errorf("got %q", view.Notes)
	}
}

func TestPlanViewMountPoints(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	dir := tree(t, "d/a", "d/e/m/", "d/e/b", "d/g/c")
	mounted := filepath.Join(dir, "d/e/m")
	whole := func(when string) { // mount points are remembered: until they change
		view, err := planView(rules(dir, "read DIR/d"), bounds{100, 100})
		if got, want := shown(dir, view), []string{"read DIR/d/"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q %v, want %q", when, got, err, want)
		}
	}
	whole("before")
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(mounted, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	view, err := planView(rules(dir, "read DIR/d"), bounds{100, 100})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"read DIR/d/a", "read DIR/d/e/b", "read DIR/d/g/", "empty DIR/d", "empty DIR/d/e"}
	if got := shown(dir, view); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	// With a rule of its own it is shown.
	view, err = planView(rules(dir, "read DIR/d/g", "write DIR/d/e/m/**"), bounds{100, 100})
	if got, want := shown(dir, view), []string{"write DIR/d/e/m/", "read DIR/d/g/"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	if err := unix.Unmount(mounted, 0); err != nil {
		t.Fatal(err)
	}
	whole("after")
}

// Deeper than any path that can be named, and than descriptors reach.
func TestPlanViewDepth(t *testing.T) {
	dir := tree(t, "d/a")
	name := strings.Repeat("n", 100)
	at, err := unix.Open(filepath.Join(dir, "d"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 60 {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	unix.Close(at)
	view, err := planView(rules(dir, "read DIR/d"), bounds{100, 1000})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(shown(dir, view), "read DIR/d/a") || view.Mounts[0].Dir {
		t.Errorf("a directory that could not be looked through is shown whole: %q", view.Notes)
	}
}

// A guest with a write rule can exchange what another guest's view names.
func TestOpenSourceRefusesExchanges(t *testing.T) {
	for what, exchange := range map[string]func(dir string) error{
		"file by link":      func(dir string) error { return os.Symlink("/etc/shadow", filepath.Join(dir, "d/a")) },
		"file by FIFO":      func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "d/a"), 0o666) },
		"file by directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, "d/a"), 0o755) },
		"file by nothing":   func(string) error { return nil },
		"file by socket": func(dir string) error {
			listener, err := net.Listen("unix", filepath.Join(dir, "d/a"))
			if err == nil {
				listener.(*net.UnixListener).SetUnlinkOnClose(false)
				err = listener.Close()
			}
			return err
		},
		"directory by link": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "e")), os.Symlink("e", filepath.Join(dir, "d")), os.WriteFile(filepath.Join(dir, "e/a"), nil, 0o644))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := tree(t, "d/a")
			view, err := planView(rules(dir, "read DIR/d/*"), bounds{10, 10})
			if err != nil {
				t.Fatal(err)
			}
			handle, err := OpenSource(view.Mounts[0])
			if err != nil {
				t.Fatal(err)
			}
			handle.Close()
			os.Remove(filepath.Join(dir, "d/a"))
			if err := exchange(dir); err != nil {
				t.Fatal(err)
			}
			if handle, err := OpenSource(view.Mounts[0]); err == nil {
				handle.Close()
				t.Error("the exchanged source was opened")
			} else if !strings.Contains(err.Error(), filepath.Join(dir, "d/a")) {
				t.Errorf("the error names no path: %v", err)
			}
		})
	}
}

// While somebody keeps exchanging a directory for a link to a forbidden one, no
// plan ever names what is behind it.
func TestPlanViewRace(t *testing.T) {
	dir := tree(t, "d/e/a", "secret/a", "secret/s", "d/f -> ../secret")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "d/e"), unix.AT_FDCWD, filepath.Join(dir, "d/f"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	for range 300 {
		view, err := planView(rules(dir, "read DIR/d/*/*", "read DIR/d/**/a"), bounds{10, 100})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range view.Mounts {
			if strings.Contains(m.Source, "secret") || strings.HasSuffix(m.Dest, "/s") {
				t.Fatalf("a plan shows %+v", m)
			}
			handle, err := OpenSource(m)
			if err != nil {
				continue // exchanged meanwhile, and noticed
			}
			path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()))
			handle.Close()
			if strings.Contains(path, "secret") {
				t.Fatalf("%s leads to %s", m.Source, path)
			}
		}
	}
}
