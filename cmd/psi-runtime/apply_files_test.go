package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/channel"
)

// hostFiles makes a directory of the host with something in it.
func hostFiles(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "psi-apply-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range map[string]string{"a.csv": "one", "b.txt": "two", "out/old": "", "secret/key.txt": "SECRET"} {
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// lookAt is Python that prints what a guest sees of a directory, and where it may write.
func lookAt(dir string) string {
	return fmt.Sprintf(`
import os
for top, dirs, files in os.walk(%q):
    dirs.sort()
    try:
        open(top + "/probe", "w").close()
        os.unlink(top + "/probe")
        print(top, "writes")
    except OSError:
        print(top)
    for name in sorted(files):
        try:
            print(name, open(top + "/" + name).read())
        except OSError as e:
            print(name, type(e).__name__)
`, dir)
}

// own begins a bundle of psi's own that waits, and is looked at through what it sees of a directory.
func own(t *testing.T, dir, policy string) *subject {
	t.Helper()
	s := &subject{line: newLine(t), id: "own", probe: []string{"/usr/bin/python3", "-I", "-S", "-c", lookAt(dir)}}
	s.clean()
	s.runs(policy)
	s.settled()
	return s
}

// sees is what the container sees of the directory.
func (s *subject) sees() string {
	s.t.Helper()
	return s.ok(append([]string{"exec", s.id}, s.probe...)...)
}

// applies is apply that must succeed.
func (s *subject) applies(policy string) {
	s.t.Helper()
	if failed := s.apply(policy); failed != "" {
		s.t.Fatalf("%s: %s", policy, failed)
	}
}

// A container that holds on to what is to be taken from it, in whatever way, keeps its policy.
func TestApplyOfWhatIsHeld(t *testing.T) {
	dir := hostFiles(t)
	s := own(t, dir, fmt.Sprintf("{mem: 64MiB, fs: [%s]}", dir))
	for name, hold := range map[string]string{
		"a file":          "f = open(D + '/a.csv')",
		"a handle":        "h = os.open(D, os.O_PATH)",
		"a mapping":       "f = open(D + '/a.csv', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
		"where it is":     "os.chdir(D + '/out')",
		"on its way":      "a, b = socket.socketpair(); a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.open(D, os.O_RDONLY)]))]); os.closerange(a.fileno() + 2, 50)",
		"only in a child": "f = open(D + '/a.csv'); os.fork() or sys.stdin.read(); f.close()",
	} {
		t.Run(name, func(t *testing.T) {
			code := fmt.Sprintf("import array, mmap, os, socket, sys\nD = %q\n%s\nprint('held', flush=True)\nsys.stdin.read()", dir, hold)
			cmd := s.command("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", code)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
				t.Errorf("%q, %v", line, err)
			}
			for _, next := range []string{"{mem: 96MiB}", fmt.Sprintf("{mem: 96MiB, fs: [{write: %s}]}", dir)} {
				s.refused(next, "reloading the files of container own: policy: .*taking away "+dir+": the guest has something open there: have it close that, or end the container")
			}
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	s.applies("{mem: 96MiB}")
	if seen := s.sees(); seen != "" {
		t.Errorf("it still sees %s", seen)
	}
}

// What is at a path of the host is not what was there: it was deleted, or replaced.
func TestApplyAfterFilesChanged(t *testing.T) {
	dir := hostFiles(t)
	policy := fmt.Sprintf("fs: ['%[1]s/*.csv', '%[1]s/*.txt']", dir)
	s := own(t, dir, policy)
	before := s.sees()
	for name, text := range map[string]string{"a.csv": "three", "new": "four"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file+"~", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+"~", file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "c.txt")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b.txt")); err != nil {
		t.Fatal(err)
	}
	if seen := s.sees(); seen != before {
		t.Errorf("before it is asked for:\n%s", seen)
	}
	for range 2 {
		s.applies(policy)
		if seen, want := s.sees(), dir+"\na.csv three\nc.txt four\n"; seen != want {
			t.Errorf("it sees\n%s, not\n%s", seen, want)
		}
	}
}

// Somebody who may write there, the guest itself, puts a link where a later policy points, or
// moves where something is mounted. It is shown nothing by that, and keeps nothing.
func TestApplyOfMovedPlaces(t *testing.T) {
	t.Run("link", func(t *testing.T) {
		dir := hostFiles(t)
		s := own(t, dir, fmt.Sprintf("fs: [{write: %s/out}]", dir))
		// A guest may make no links, but move them.
		if err := os.Symlink("../secret", dir+"/out/link"); err != nil {
			t.Fatal(err)
		}
		s.ok("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", fmt.Sprintf("import os; os.rename('%[1]s/out/link', '%[1]s/out/sub')", dir))
		for _, pattern := range []string{"/out/sub/*.txt", "/out/sub", "/out/sub/key.txt"} {
			s.refused(fmt.Sprintf("fs: [{write: %[1]s/out}, '%[1]s%s']", dir, pattern), "policy: fs rule read .*symbolic link")
		}
		s.applies(fmt.Sprintf("fs: ['%s/out/**']", dir))
		if seen := s.sees(); strings.Contains(seen, "SECRET") {
			t.Error(seen)
		}
	})
	t.Run("race", func(t *testing.T) {
		dir := hostFiles(t)
		s := own(t, dir, fmt.Sprintf("fs: [{write: %s/out}]", dir))
		if err := os.WriteFile(dir+"/out/harmless", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			sub := dir + "/out/sub"
			_ = os.Mkdir(sub+"~", 0o755)
			_ = os.WriteFile(sub+"~/mine.txt", []byte("mine"), 0o644)
			_ = os.Symlink("../secret", sub)
			for {
				select {
				case <-stop:
					return
				default:
					_ = unix.Renameat2(unix.AT_FDCWD, sub, unix.AT_FDCWD, sub+"~", unix.RENAME_EXCHANGE)
				}
			}
		}()
		given := 0
		for i := range 20 {
			if s.apply(fmt.Sprintf("{mem: %dMiB, fs: ['%s/out/sub%s']}", 64+i, dir, []string{"", "/*.txt"}[i%2])) == "" {
				given++
			}
			if seen := s.sees(); strings.Contains(seen, "SECRET") {
				t.Errorf("%d: %s", i, seen)
			}
		}
		close(stop)
		<-stopped
		t.Logf("%d of 20 were given", given)
	})
	t.Run("mount", func(t *testing.T) {
		dir := hostFiles(t)
		for _, name := range []string{"/in/one", "/in/two"} {
			if err := os.MkdirAll(dir+name, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		policy := fmt.Sprintf("fs: [%[1]s, {write: %[1]s/in/one}, {write: %[1]s/in/two}]", dir)
		s := own(t, dir, policy)
		// Twice: as it was made, and as it was shown since.
		for range 2 {
			if err := os.Rename(dir+"/in", dir+"/elsewhere"); err != nil {
				t.Fatal(err)
			}
			s.refused("{}", "reloading the files of container own: .*/in/(one|two) is not where it was mounted: no such file")
			if err := os.MkdirAll(dir+"/in/one", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir+"/in/two", 0o755); err != nil {
				t.Fatal(err)
			}
			s.refused("{}", "reloading the files of container own: .*/in/(one|two) is no mount any more: the guest has moved what was there")
			if err := unix.Renameat2(unix.AT_FDCWD, dir+"/in", unix.AT_FDCWD, dir+"/elsewhere", unix.RENAME_EXCHANGE); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(dir + "/elsewhere"); err != nil {
				t.Fatal(err)
			}
			s.applies("{}")
			if seen := s.sees(); seen != "" {
				t.Errorf("it still sees %s", seen)
			}
			s.applies(policy)
		}
		// Names decide, whatever they are names of.
		if err := unix.Renameat2(unix.AT_FDCWD, dir+"/in/one", unix.AT_FDCWD, dir+"/in/two", unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
		s.applies(fmt.Sprintf("fs: [%[1]s, {write: %[1]s/in/two}]", dir))
		if seen := s.sees(); strings.Contains(seen, "/in/one writes") || !strings.Contains(seen, "/in/two writes") {
			t.Error(seen)
		}
	})
}

// exchangeable makes two directories that a guest has in its /tmp.
func exchangeable(t *testing.T) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "psi-apply-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "in"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "in/file"), []byte("of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The guest's /tmp is its own, and so are the directories in it that something is mounted in: it
// exchanges two of them, so that each mount is where the other was.
func TestApplyOfExchangedPlaces(t *testing.T) {
	dir := exchangeable(t)
	policy, less := fmt.Sprintf("fs: [%[1]s/a/in, %[1]s/b/in]", dir), fmt.Sprintf("fs: [%s/b/in]", dir)
	s := own(t, dir, policy)
	rename := []string{"exec", s.id, "/usr/bin/python3", "-I", "-S", "-c",
		fmt.Sprintf("import os; os.chdir(%q); os.rename('a', 'x'); os.rename('b', 'a'); os.rename('x', 'b')", dir)}
	if lacksFiles() == nil { // a guest moves no directory with something below that it may not write
		if r := s.run(rename...); r.code == 0 || !strings.Contains(r.err, "PermissionError") {
			t.Errorf("exit code %d: %s", r.code, r.err)
		}
		return
	}
	exchange := func() { t.Helper(); s.ok(rename...) }
	const refusal = "reloading the files of container own: .*what is mounted at .*/a/in is not what was: somebody has moved it"
	// As it was made: what is there is looked for then.
	exchange()
	s.applies(less)
	if seen := s.sees(); strings.Contains(seen, "of a") || !strings.Contains(seen, "of b") {
		t.Errorf("it sees\n%s", seen)
	}
	// As it was shown since.
	s.applies(policy)
	exchange()
	s.refused(less, refusal)
	exchange()
	s.applies(less)
	if seen := s.sees(); strings.Contains(seen, "of a") || !strings.Contains(seen, "of b") {
		t.Errorf("it sees\n%s", seen)
	}
}

// It does so all the while, so that what is there is not what was there a moment ago.
func TestApplyWhilePlacesAreExchanged(t *testing.T) {
	dir := exchangeable(t)
	s := &subject{line: newLine(t), probe: []string{"/usr/bin/python3", "-I", "-S", "-c", lookAt(dir)}}
	s.clean()
	bundle := filepath.Join(t.TempDir(), "bundle")
	entry := write(t, "entry.py", fmt.Sprintf(`
import os
os.chdir(%q)
open("/tmp/begun", "w").close()
while True:
    try:
        os.rename("a", "x"), os.rename("b", "a"), os.rename("x", "b")
    except OSError:
        pass
`, dir))
	s.ok("bundle", "--policy", write(t, "before.yml", fmt.Sprintf("fs: [%[1]s/a/in, %[1]s/b/in]", dir)), "--entry", entry, "--rootfs", pythonRoot(t), "-o", bundle)
	given := 0
	for i := range 6 {
		s.id = fmt.Sprintf("own%d", i)
		s.detached("run", "-d", "-b", bundle, s.id)
		eventually(t, "it moves them", func() bool {
			return s.run("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", "open('/tmp/begun')").code == 0
		})
		kept, lost := "a", "b"
		if i%2 == 1 {
			kept, lost = lost, kept
		}
		if s.apply(fmt.Sprintf("fs: [%s/%s/in]", dir, kept)) == "" {
			given++
			for range 5 { // it moves them while they are looked at, too
				if seen := s.run(append([]string{"exec", s.id}, s.probe...)...).out; strings.Contains(seen, "of "+lost) {
					t.Fatalf("it kept what was taken away:\n%s", seen)
				}
			}
		}
		s.run("delete", "--force", s.id)
	}
	t.Logf("%d of 6 were given", given)
}

// The agent of a bundle of psi's own takes over other limits of messages and output.
func TestApplyToAnAgent(t *testing.T) {
	l := newLine(t)
	dir := filepath.Join(t.TempDir(), "bundle")
	l.ok("bundle", "--policy", write(t, "before.yml", "{message: 10KiB, output: 1KiB}"), "--rootfs", pythonRoot(t), "-o", dir)
	s := &subject{line: l, id: "agent"}
	s.clean()
	cmd := l.command("run", "-b", dir, s.id)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.run("delete", "--force", s.id); _ = cmd.Wait() })
	reader, writer := channel.NewReader(out, channel.FromGuest, 64<<20), channel.NewWriter(in)
	// does runs code, and counts the bytes of its values and output, and its errors.
	does := func(code string) (posted, printed, failed int) {
		t.Helper()
		if err := writer.Write(channel.Frame{Type: channel.Exec, ID: 1, Payload: []byte(code)}); err != nil {
			t.Fatal(err)
		}
		for {
			f, err := reader.Read()
			if err != nil {
				t.Fatal(err)
			}
			switch f.Type {
			case channel.GuestPost:
				posted += len(f.Payload)
			case channel.Stdout:
				printed += len(f.Payload)
			case channel.Error:
				return posted, printed, failed + 1
			case channel.Done:
				return posted, printed, failed
			}
		}
	}
	if posted, printed, failed := does("print('x' * 2000); post('y' * 20000)"); posted != 0 || printed != 1024 || failed != 1 {
		t.Errorf("at first: posted %d bytes, printed %d, %d errors", posted, printed, failed)
	}
	s.applies("{message: 64KiB, output: 4KiB}")
	if posted, printed, failed := does("print('x' * 2000); post('y' * 20000)"); posted < 20000 || printed != 2001 || failed != 0 {
		t.Errorf("then: posted %d bytes, printed %d, %d errors", posted, printed, failed)
	}
	s.applies("{message: 1KiB, output: 1KiB}")
	if posted, printed, failed := does("print('x' * 2000); post('y' * 20000)"); posted != 0 || printed != 0 || failed != 1 {
		t.Errorf("in the end: posted %d bytes, printed %d, %d errors", posted, printed, failed)
	}
}
