package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/internal/container"
)

// subject is a container that is given other policies.
type subject struct {
	*line
	id    string
	probe []string // a command that tells, from inside, what the policy lets it do
}

const (
	beforePolicy = `{mem: 128MiB, cpu: 0.5, pids: 30, open_files: 60, tcp: ["127.0.0.1:%[1]d"]}`
	afterPolicy  = `{mem: 256MiB, cpu: 0.75, pids: 40, open_files: 50, tcp: ["127.0.0.1:%[2]d", "10.0.0.0/8:81"%[3]s]}`
)

// subjects are a bundle of psi's own and a container as an engine makes it.
func subjects(t *testing.T, each func(t *testing.T, s *subject, before, after string)) {
	ports := [2]int{}
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	policies := func(more string) (before, after string) {
		return fmt.Sprintf(beforePolicy, ports[0]), fmt.Sprintf(afterPolicy, ports[0], ports[1], more)
	}
	probe := []string{"/usr/bin/python3", "-I", "-S", "-c", fmt.Sprintf(`
import errno, resource, socket
for host, port in ("127.0.0.1", %d), ("127.0.0.1", %d), ("10.0.0.1", 81):
    with socket.socket() as s:
        s.settimeout(5)
        print(port, errno.errorcode.get(s.connect_ex((host, port)), "connected"))
print(resource.getrlimit(resource.RLIMIT_NOFILE), open("/etc/hosts").read())
for name in "csv", "json":
    try: print(__import__(name).__name__)
    except ImportError: print("no", name)`, ports[0], ports[1])}

	t.Run("own", func(t *testing.T) {
		s := &subject{line: newLine(t), id: "own"}
		dir := hostFiles(t)
		s.probe = append(slices.Clone(probe[:4]), probe[4]+"\n"+lookAt(dir))
		s.clean()
		small(t, s.root)
		before, after := policies(`, "db.example.org:5432"`)
		before = strings.Replace(before, "}", fmt.Sprintf(", fs: ['%s/*.csv'], imports: [errno, os, resource, socket, time, csv]}", dir), 1)
		after = strings.Replace(after, "}", fmt.Sprintf(", fs: ['%[1]s/**/*.txt', {write: '%[1]s/out'}], imports: [errno, os, resource, socket, time]}", dir), 1)
		s.runs(before)
		s.settled()
		each(t, s, before, after)
	})
	t.Run("engine", func(t *testing.T) {
		s := &subject{line: newLine(t), id: "engine"}
		dir := hostFiles(t)
		s.probe = append(slices.Clone(probe[:4]), probe[4]+"\n"+lookAt(dir))
		s.clean()
		small(t, s.root)
		before, after := policies("")
		before = strings.Replace(before, "}", fmt.Sprintf(", fs: [{write: %[1]s}, {deny: %[1]s/out/old}], imports: [errno, os, resource, socket, time, csv]}", dir), 1)
		after = strings.Replace(after, "}", fmt.Sprintf(", fs: [{read: %[1]s}, {deny: %[1]s/out/old}, {deny: %[1]s/secret}, {deny: %[1]s/a.csv}], imports: [errno, os, resource, socket, time, json]}", dir), 1)
		s.detached("run", "-d", "-b", s.bundle("", withVolume(t, dir, before)), s.id)
		s.settled()
		each(t, s, before, after)
	})
}

// runs begins a bundle of psi's own that waits.
func (s *subject) runs(policy string) {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "bundle")
	entry := write(s.t, "entry.py", "import time\ntime.sleep(1000)\n")
	s.ok("bundle", "--policy", write(s.t, "before.yml", policy), "--entry", entry, "--rootfs", pythonRoot(s.t), "-o", dir)
	s.detached("run", "-d", "-b", dir, s.id)
}

// clean removes, in the end, what is left in the kernel of a container whose attendant was killed.
func (s *subject) clean() { s.t.Cleanup(func() { s.run("gc") }) }

// settled waits until who attends the container has everything that it opens by itself: the
// program that tells of throttling comes a moment after the container, where there can be one.
func (s *subject) settled() {
	s.t.Helper()
	pid := s.attendant()
	eventually(s.t, "all is open that watches it", func() bool {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			switch target, _ := os.Readlink(fd); target {
			case "anon_inode:bpf_link", "anon_inode:bpf-link": // made, or found
				return true
			}
		}
		return strings.Contains(s.ok("state", s.id), "CPU_THROTTLE is not told")
	})
}

// pythonRoot is the root file system that make built.
func pythonRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../../build/rootfs")
	if err == nil {
		_, err = os.Stat(filepath.Join(root, "usr/lib/psi/rootfs.json"))
	}
	if err != nil {
		t.Fatalf("it takes a root with Python (make rootfs): %v", err)
	}
	return root
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// look is everything that a policy decides about the container: what is written down of
// it, its limits, what it can do.
func (s *subject) look() string {
	s.t.Helper()
	record, err := os.ReadFile(filepath.Join(s.root, s.id, "state.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	c := s.load()
	defer c.Close()
	all := []string{string(record), s.ok("state", s.id), s.ok(append([]string{"exec", s.id}, s.probe...)...)}
	for _, controller := range []string{"", "memory", "cpu", "pids"} {
		dir, err := c.Cgroup(controller)
		if err != nil {
			continue
		}
		for _, name := range []string{
			"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max", "memory.swap.max",
			"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max", "pids.max", "cgroup.freeze",
		} {
			if value, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				all = append(all, name+" "+strings.TrimSpace(string(value)))
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", c.InitPID()))
	if err != nil {
		s.t.Fatal(err)
	}
	// How the last change of memory was asked for is no limit.
	return strings.ReplaceAll(strings.Join(append(all, string(limits)), "\n"), `,"memory_check_before_update":true`, "")
}

func (s *subject) load() *container.Container {
	s.t.Helper()
	c, err := container.Load(s.root, s.id)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// unchanged compares with an earlier look, line by line.
func (s *subject) unchanged(what, before string) {
	s.t.Helper()
	after := s.look()
	if after == before {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			s.t.Errorf("%s: it has changed:\n- %.2000s\n+ %.2000s", what, a[i], b[i])
		}
	}
	s.t.Errorf("%s: it has changed", what)
}

// apply asks for a policy. What fails is the error's text.
func (s *subject) apply(policy string) (failed string) {
	s.t.Helper()
	r := s.run("policy", "apply", s.id, write(s.t, "policy.yml", policy))
	if r.code != 0 && r.err == "" {
		s.t.Fatalf("exit code %d without a word", r.code)
	}
	return r.err
}

// refused asks for a policy that must fail with such an error, and change nothing.
func (s *subject) refused(policy, pattern string) {
	s.t.Helper()
	before := s.look()
	failed := s.apply(policy)
	if !regexp.MustCompile(pattern).MatchString(failed) {
		s.t.Errorf("%q does not match %q", failed, pattern)
	}
	s.unchanged(pattern, before)
}

// attendant is the process that puts policies into force.
func (s *subject) attendant() int {
	s.t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, _ := os.ReadFile(file)
		words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if n := len(words); n > 2 && words[n-1] == s.id && words[n-2] == "attend" && strings.Contains(string(line), s.root) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	s.t.Fatal("nobody attends the container")
	return 0
}
