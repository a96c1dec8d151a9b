package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/engine"
)

// Where the host has no LSM programs, mounts hold what a container that an engine made sees of
// its volumes, and they change while it runs.

// withVolume mounts a directory of the host at its own path, and the root of psi's tests.
func withVolume(t *testing.T, dir, policy string) func(*specs.Spec) {
	python := pythonRoot(t)
	return func(spec *specs.Spec) {
		spec.Root = &specs.Root{Path: python, Readonly: true}
		spec.Process.Args = []string{"/usr/bin/python3", "-I", "-S", "-c", "import time; time.sleep(1000)"}
		spec.Annotations = map[string]string{engine.PolicyKey: policy}
		spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: filepath.Dir(dir), Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=755"}},
			specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: []string{"rbind", "rw"}})
	}
}

// ofEngine begins a container as an engine makes it, with a volume, where mounts hold it.
func ofEngine(l *line, dir, policy string, change ...func(*specs.Spec)) *subject {
	t := l.t
	t.Helper()
	if lacksFiles() == nil {
		t.Skip("LSM programs hold the rules on this kernel (CONFIG_BPF_LSM)")
	}
	s := &subject{line: l, id: "engine", probe: []string{"/usr/bin/python3", "-I", "-S", "-c", lookAt(dir)}}
	s.clean()
	bundle := s.bundle("", append([]func(*specs.Spec){withVolume(t, dir, policy)}, change...)...)
	s.detached("run", "-d", "-b", bundle, s.id)
	s.settled()
	return s
}

func TestApplyFilesToAnEngine(t *testing.T) {
	dir := hostFiles(t)
	door, err := net.Listen("unix", dir+"/secret/socket") // hidden twice: in what is denied, and always
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	fixed := t.TempDir()
	all := fmt.Sprintf("fs: [{write: %s}, {read: %s}, {deny: %[1]s/out/old}, {deny: %[1]s/secret}, {deny: /opt}]", dir, fixed)
	l := newLine(t)
	small(t, l.root)
	s := ofEngine(l, dir, all, func(spec *specs.Spec) {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: fixed, Type: "bind", Source: fixed, Options: []string{"rbind", "ro"}})
	})
	const secret = "key.txt SECRET\nsocket \n"
	everything := fmt.Sprintf("%[1]s writes\na.csv one\nb.txt two\n%[1]s/out writes\nold \n%[1]s/secret writes\n%s", dir, secret)
	readOnly := strings.ReplaceAll(everything, " writes", "")
	for _, step := range []struct{ rules, sees, says string }{
		{`{read: DIR}, {read: FIXED}`, readOnly, "mount options of DIR"},
		{`{read: DIR}, {read: FIXED}, {deny: DIR/secret}, {deny: /opt/none}`, strings.Replace(readOnly, secret, "", 1), "masked path"},
		{`{write: DIR}, {read: FIXED}, {deny: DIR/a.csv}`, strings.Replace(everything, "a.csv one", "a.csv ", 1), "masked path"},
		{``, dir + "\n", "masked path"},
		{`{write: DIR}, {read: FIXED}, {deny: DIR/secret}, {deny: DIR/secret/key.txt}`, strings.Replace(strings.Replace(everything, secret, "", 1), "/secret writes", "/secret", 1), "masked path"},
		{`{write: DIR}, {write: FIXED}, {deny: DIR/secret/key.txt}`, strings.Replace(everything, "key.txt SECRET", "key.txt ", 1), "masked path"},
		{`{write: DIR}, {write: FIXED}`, everything, "mount options of DIR"},
	} {
		names := strings.NewReplacer("DIR", dir, "FIXED", fixed)
		s.applies("fs: [" + names.Replace(step.rules) + "]")
		if seen := s.sees(); seen != step.sees {
			t.Errorf("%s: it sees\n%s, not\n%s", step.rules, seen, step.sees)
		}
		if state := s.ok("state", s.id); !strings.Contains(state, names.Replace(step.says)) {
			t.Errorf("%s: %s", step.rules, state)
		}
	}
	// The engine's own bound stays, whatever a policy says; so does what is no mount's to hold.
	if r := s.run("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", fmt.Sprintf("open(%q, 'w')", fixed+"/x")); !strings.Contains(r.err, "Read-only") {
		t.Errorf("%+v", r)
	}
	s.refused(fmt.Sprintf("fs: [{write: %s}, {read: %s}, {deny: %[1]s/none}]", dir, fixed), "there is no "+dir+"/none that could be masked")
	s.refused(fmt.Sprintf("fs: ['%s/*.csv', {read: %s}]", dir, fixed), "fs: read "+dir+`/\*.csv: a pattern needs BPF-LSM`)
	s.refused(fmt.Sprintf("fs: [%s/out, {read: %s}]", dir, fixed), "fs: read "+dir+"/out: a part of .* is held by Landlock.*make a new container")
	// What comes after the mounts fails, on the way forth and back.
	narrow := strings.NewReplacer("DIR", dir, "FIXED", fixed).Replace("fs: [{read: DIR}, {read: FIXED}, {deny: DIR/secret}, {deny: DIR/secret/key.txt}, {deny: /opt}]")
	for _, next := range []string{narrow, all, "{}", narrow} {
		release := fill(t, s.root)
		s.refused(next, "reloading the state of container engine: .*no space left")
		release()
		s.applies(next)
	}
}

// Parts of a volume are held by Landlock, for life: it can be given fewer of them.
func TestApplyWithinLandlock(t *testing.T) {
	dir := hostFiles(t)
	rules := func(text string) string { return "fs: [" + strings.ReplaceAll(text, "DIR", dir) + "]" }
	s := ofEngine(newLine(t), dir, rules("{read: DIR/secret}, {write: DIR/out}"))
	parts := fmt.Sprintf("%[1]s\na.csv PermissionError\nb.txt PermissionError\n%[1]s/out writes\nold \n%[1]s/secret\nkey.txt SECRET\n", dir)
	for _, step := range []struct{ rules, sees string }{
		{"{write: DIR/out}", strings.Replace(parts, "key.txt SECRET\n", "", 1)},
		{"{read: DIR/secret}, {read: DIR/out}", strings.Replace(parts, " writes", "", 1)},
		{"{read: DIR/secret}, {write: DIR/out}, {deny: DIR/secret/key.txt}", strings.Replace(parts, "SECRET", "", 1)},
		{"", dir + "\n"},
		{"{read: DIR/secret}, {write: DIR/out}", parts},
	} {
		s.applies(rules(step.rules))
		if seen := s.sees(); seen != step.sees {
			t.Errorf("%s: it sees\n%s, not\n%s", step.rules, seen, step.sees)
		}
	}
	s.refused(rules("{read: DIR}, {write: DIR/out}"), "its Landlock domain opens what the policy that it was made with allows: allow no more, or make a new container")
	s.refused(rules("{read: DIR/secret/key.txt}, {write: DIR/out}"), "fs: read .*key.txt: it cannot change in a running container: its Landlock domain opens all of .*/secret, .*make a new container")
}

// A container that holds on to what is to be taken from it, in whatever way, keeps its policy.
func TestApplyOfWhatAnEnginesContainerHolds(t *testing.T) {
	dir := hostFiles(t)
	// A mask is there already, which is in the way of any other.
	policy := fmt.Sprintf("{mem: 64MiB, fs: [{write: %[1]s}, {deny: %[1]s/b.txt}]}", dir)
	s := ofEngine(newLine(t), dir, policy)
	const taken = "/secret"
	for name, hold := range map[string]string{
		"a file":      "f = open(D + '/secret/key.txt')",
		"a mapping":   "f = open(D + '/secret/key.txt', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
		"where it is": "os.chdir(D + '/secret')",
		"above":       "h = os.open(D, os.O_RDONLY)",
		"on its way":  "a, b = socket.socketpair(); a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.open(D, os.O_RDONLY)]))]); os.closerange(a.fileno() + 2, 50)",
		"of nobody's": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendmsg([b''], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.open(D, os.O_RDONLY)]))]); a.close(); os.closerange(b.fileno() + 1, 50)",
		"to write":    "f = open(D + '/out/old', 'w')",
	} {
		t.Run(name, func(t *testing.T) {
			release := s.holds(dir, hold)
			next := []string{fmt.Sprintf("{write: %[1]s}, {deny: %[1]s%s}", dir, taken)}
			if name == "to write" {
				next = []string{"", "{read: " + dir + "}"}
			}
			for _, rules := range next {
				s.refused("{mem: 96MiB, fs: ["+rules+"]}", "reloading the files of container engine: .*(the guest has something open there|process [0-9]+ has .* open, which the policy takes away): have it close that, or end the container")
			}
			release()
		})
	}
	s.applies(fmt.Sprintf("{mem: 96MiB, fs: [{read: %[1]s}, {deny: %[1]s%s}]}", dir, taken))
	release := s.holds(dir, "f = open(D + '/a.csv')") // which stays its own
	s.applies(fmt.Sprintf("{mem: 96MiB, fs: [{write: %s}]}", dir))
	s.applies(fmt.Sprintf("{mem: 96MiB, fs: [{read: %s}]}", dir))
	release()
	s.applies("{mem: 96MiB}")
	if seen := s.sees(); seen != dir+"\n" {
		t.Errorf("it still sees %s", seen)
	}
}

// holds has the container hold something of a directory, D, until release.
func (s *subject) holds(dir, how string) (release func()) {
	s.t.Helper()
	code := fmt.Sprintf("import array, mmap, os, socket, sys\nD = %q\n%s\nprint('held', flush=True)\nsys.stdin.read()", dir, how)
	cmd := s.command("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", code)
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		s.t.Errorf("%q, %v", line, err)
	}
	return func() {
		s.t.Helper()
		in.Close()
		if err := cmd.Wait(); err != nil {
			s.t.Error(err)
		}
	}
}

// The container may write beside what is masked: it exchanges directories with masks in them, or
// puts links where others are to be. It is shown nothing by that.
func TestApplyOfExchangedMasks(t *testing.T) {
	dir := hostFiles(t)
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "key"), []byte("SECRET of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rules := func(more string) string { return fmt.Sprintf("fs: [{write: DIR}, {deny: DIR/secret}%s]", more) }
	policy := func(more string) string { return strings.ReplaceAll(rules(more), "DIR", dir) }
	both, onlyB := policy(", {deny: DIR/a/key}, {deny: DIR/b/key}"), policy(", {deny: DIR/b/key}")
	s := ofEngine(newLine(t), dir, both)
	run := func(code string) {
		t.Helper()
		s.ok("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", fmt.Sprintf("import os; os.chdir(%q)\n%s", dir, code))
	}
	exchange := func() { t.Helper(); run("os.rename('a', 'x'); os.rename('b', 'a'); os.rename('x', 'b')") }
	hidden := func(names ...string) {
		t.Helper()
		seen := s.sees()
		for _, name := range names {
			if strings.Contains(seen, "SECRET of "+name) {
				t.Errorf("ESCAPED: it sees\n%s", seen)
			}
		}
	}
	// Twice: as they were made, and as they were put since.
	for range 2 {
		exchange()
		s.refused(onlyB, "the mask of "+dir+"/a/key is at .*"+dir+"/b/key.* now: somebody has moved the directory")
		s.refused("{}", "the mask of "+dir+"/(a|b)/key is at .* now")
		hidden("a", "b")
		// What stays in force stays where it is.
		s.applies(policy(", {deny: DIR/a/key}, {deny: DIR/b/key}, {deny: DIR/out}"))
		s.applies(both)
		hidden("a", "b")
		exchange()
		s.applies(onlyB)
		if seen := s.sees(); !strings.Contains(seen, "SECRET of a") {
			t.Errorf("it sees\n%s", seen)
		}
		hidden("b")
		s.applies(both)
		hidden("a", "b")
	}
	// Away, and something else in the place of it.
	run("os.rename('a', 'c'); os.mkdir('a'); open('a/key', 'w').close()")
	s.refused(onlyB, "the mask of "+dir+"/a/key is at .*/c/key.* now")
	hidden("a", "b")
	run("os.unlink('a/key'); os.rmdir('a'); os.rename('c', 'a')")
	// A link to what is hidden, or to what is the container's own.
	run("os.symlink('secret', 'l'); os.symlink('/usr/lib', 'm')")
	s.refused(policy(", {deny: DIR/l/key.txt}, {deny: DIR/a/key}, {deny: DIR/b/key}"), "/l/key.txt is a link, or behind one")
	s.refused(policy(", {deny: DIR/m}, {deny: DIR/a/key}, {deny: DIR/b/key}"), "/m is a link, or behind one")
	hidden("a", "b")
	// The host replaces a file, and its mask is gone; the next policy masks what is there now.
	if err := os.WriteFile(dir+"/new", []byte("SECRET of a"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Rename(dir+"/new", dir+"/a/key"); err != nil {
		t.Fatal(err)
	}
	s.applies(policy(", {deny: DIR/a/key}, {deny: DIR/b/key}, {deny: DIR/out}"))
	hidden("a", "b")
	// All the while, so that what is there is not what was there a moment ago.
	defer s.holds(dir, "os.chdir(D)\nif os.fork() == 0:\n  while True: os.rename('a', 'x'); os.rename('b', 'a'); os.rename('x', 'b')\nos.chdir('/')")()
	given := 0
	for i := range 4 {
		if s.apply([]string{onlyB, both}[i%2]) == "" {
			given++
		}
		if seen := s.run(append([]string{"exec", s.id}, s.probe...)...).out; strings.Contains(seen, "SECRET of b") {
			t.Fatalf("ESCAPED: it sees\n%s", seen)
		}
	}
	t.Logf("%d of 4 were given", given)
}

// Mounts that nobody knows are in a volume, or over what is to be taken away: nothing changes.
func TestApplyUnderOthersMounts(t *testing.T) {
	dir := hostFiles(t)
	policy := fmt.Sprintf("fs: [{write: %[1]s}, {deny: %[1]s/secret}]", dir)
	s := ofEngine(newLine(t), dir, policy)
	for _, place := range []string{dir + "/out/old", dir + "/secret", dir} {
		source := map[bool]string{true: "/dev/null", false: "/proc"}[place == dir+"/out/old"]
		uncover := cover(t, s, source, place)
		for _, next := range []string{"", fmt.Sprintf("{write: %s}", dir), fmt.Sprintf("{read: %[1]s}, {deny: %[1]s/secret}", dir)} {
			if place == dir+"/secret" && strings.Contains(next, "deny") || place == dir+"/out/old" && strings.HasPrefix(next, "{write") {
				continue // of which it is not in the way
			}
			failed := s.apply("fs: [" + next + "]")
			if !regexp.MustCompile("something else is mounted in|is not what was|is no mount|no such file").MatchString(failed) {
				t.Errorf("%s, fs: [%s]: %q", place, next, failed)
			}
		}
		uncover()
		if seen := s.sees(); strings.Contains(seen, "SECRET") || !strings.Contains(seen, dir+" writes") {
			t.Errorf("%s: it sees\n%s", place, seen)
		}
	}
	s.applies("fs: []")
	s.applies(policy)
}
