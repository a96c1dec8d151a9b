package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
)

// What a change of policy needs is taken from whoever attends the container, one thing
// after another, and by the container itself. Each time the container has to have exactly
// the policy that it had, and the error has to say what failed.

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

// Each descriptor that a change needs is missing once: every step that opens something
// fails in turn.
func TestApplyWithoutDescriptors(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		// What is made once is there then. Not everybody may raise open_files again.
		warm := strings.Replace(after, "open_files: 50", "open_files: 60", 1)
		if failed := s.apply(warm) + s.apply(before); failed != "" {
			t.Fatal(failed)
		}
		look, pid := s.look(), s.attendant()
		steps := regexp.MustCompile("reloading the ([a-z ]+) of container|^")
		seen, most := map[string]int{}, 0
		for more := 1; ; more++ {
			if more > 60 {
				t.Fatal("it needs more than 60 descriptors")
			}
			restore := starve(t, pid, more)
			failed := s.apply(after)
			restore()
			if failed == "" {
				break
			}
			if !strings.Contains(failed, "too many open files") && !strings.Contains(failed, "open no more files") {
				t.Errorf("%d more descriptors: the error does not say what failed: %s", more, failed)
			}
			seen[steps.FindStringSubmatch(failed)[1]]++ // "" before the first step
			most = more
			s.unchanged(fmt.Sprintf("%d more descriptors: %s", more, failed), look)
			if t.Failed() {
				return
			}
		}
		t.Logf("failed with up to %d more descriptors: %v", most, seen)
		// With one more it had all of it.
		look = s.look()
		s.applies(after)
		s.unchanged("the same policy again", look)
	})
}

// starve leaves a process so many descriptors more than it has.
func starve(t *testing.T, pid, more int) (restore func()) {
	t.Helper()
	// One that is closed a moment later must not count.
	used := 0
	for range 3 {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		highest := 0
		for _, fd := range fds {
			n, _ := strconv.Atoi(fd.Name())
			highest = max(highest, n)
		}
		used = highest + 1
		time.Sleep(5 * time.Millisecond)
	}
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(used + more), Max: 4096}, &old); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4096, Max: 4096}, nil); err != nil {
			t.Error(err)
		}
	}
}

// The file system with what is written down of the container is full.
func TestApplyWithoutSpace(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		look := s.look()
		release := fill(t, s.root)
		failed := s.apply(after)
		if !strings.Contains(failed, "reloading the state of container "+s.id) || !strings.Contains(failed, "no space left") {
			t.Errorf("%q", failed)
		}
		release()
		s.unchanged("without space", look)
		// Neither has whoever changes it next anything left of it.
		s.ok("update", "--pids-limit", "25", s.id)
		if failed := s.apply(before) + s.apply(after); failed != "" {
			t.Error(failed)
		}
		if look := s.look(); s.id == "own" && !strings.Contains(look, "db.example.org\n") {
			t.Errorf("a name that a change brought which failed has no address now:\n%s", look)
		}
	})
}

// small mounts a file system of its own, which a test can fill.
func small(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no space in the file system of a directory.
func fill(t *testing.T, dir string) (release func()) {
	t.Helper()
	name := filepath.Join(dir, "full")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// A cgroup cannot be written.
func TestApplyToReadOnlyCgroup(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		c := s.load()
		defer c.Close()
		for _, controller := range []string{"memory", "cpu", "pids"} {
			place, err := c.Cgroup(controller)
			if err != nil { // there is one for all, of which nothing could be read either
				place, err = c.Cgroup("")
				place = filepath.Join(place, controller+".max")
			}
			if err != nil {
				t.Fatal(err)
			}
			look := s.look()
			failed := ""
			readOnly(t, place, func() { failed = s.apply(after) })
			if !regexp.MustCompile("reloading the limits of container " + s.id + ": .*(read-only|cross-device)").MatchString(failed) {
				t.Errorf("%q", failed)
			}
			s.unchanged(controller, look)
		}
		if failed := s.apply(after); failed != "" {
			t.Error(failed)
		}
	})
}

func readOnly(t *testing.T, place string, do func()) {
	t.Helper()
	if err := unix.Mount(place, place, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", place, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	do()
}

// The guest itself is in the way: where the proxy has to listen it does, what is taken away is
// in use. And somebody has mounted over what has to be written.
func TestApplyAgainstTheGuest(t *testing.T) {
	s := &subject{line: newLine(t), id: "hostile", probe: []string{"/usr/bin/python3", "-I", "-S", "-c", "print(open('/etc/hosts').read())"}}
	entry := write(t, "entry.py", `
import socket, time
s = socket.create_server(("127.0.0.1", 8000))
b = bytearray(48 << 20)
open("/tmp/ready", "w").close()
while True: time.sleep(1)
`)
	dir := filepath.Join(t.TempDir(), "bundle")
	policy := "{mem: 128MiB, pids: 30, read_only: false, expose: [8000, 8001]}"
	s.ok("bundle", "--policy", write(t, "before.yml", policy), "--entry", entry, "--rootfs", pythonRoot(t), "-o", dir)
	s.detached("run", "-d", "-b", dir, s.id)
	eventually(t, "the guest is ready", func() bool {
		return s.run("exec", s.id, "/usr/bin/python3", "-I", "-S", "-c", "open('/tmp/ready')").code == 0
	})

	const next = "{mem: 256MiB, pids: 40, read_only: false, expose: [8001], tcp: [%s]}"
	s.refused(fmt.Sprintf(next, "'127.0.0.1:8000'"), "reloading the rules of container hostile: .*port 8000.*in use")
	s.refused(fmt.Sprintf(next, "'127.0.0.1:9', '127.0.0.1:8000', 'db.example.org:1'"), "reloading the rules of container hostile: .*port 8000.*in use")
	s.refused("{mem: 16MiB, pids: 40, read_only: false, expose: [8001]}", "reloading the limits of container hostile")
	uncover := cover(t, s, "/usr/lib/psi/rootfs.json", "/etc/hosts")
	s.refused(fmt.Sprintf(next, "'db.example.org:1'"), "reloading the names of container hostile: .*/etc/hosts.*busy")
	uncover()
	if failed := s.apply(fmt.Sprintf(next, "'db.example.org:1'")); failed != "" {
		t.Error(failed)
	}
}

// Nobody can tell which connections the container has: its network cannot be entered.
func TestApplyWhereConnectionsAreHidden(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		if s.id == "own" {
			return // its proxy knows them
		}
		look := s.look()
		c := s.load()
		defer c.Close()
		namespaces := fmt.Sprintf("/proc/%d/ns", c.InitPID())
		if err := unix.Mount("tmpfs", namespaces, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		failed := s.apply(after)
		if err := unix.Unmount(namespaces, 0); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(failed, "reloading the connections of container engine: ") || !strings.Contains(failed, "/ns/net: no such file") {
			t.Errorf("%q", failed)
		}
		s.unchanged("connections", look)
		if failed := s.apply(after); failed != "" {
			t.Error(failed)
		}
	})
}

// What comes last cannot be taken back, and fails after all: somebody has lowered a process's
// limit further than the policy does, just now, and to raise that takes CAP_SYS_RESOURCE. Nobody
// knows what holds the container then, and it ends.
func TestApplyThatCannotBeFinished(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	var many []string // so that there is time
	for i := range 300 {
		many = append(many, fmt.Sprintf("'10.0.0.1:%d'", 1000+2*i))
	}
	s := &subject{line: newLine(t)}
	s.clean()
	next := write(t, "policy.yml", fmt.Sprintf("{open_files: 50, tcp: [%s]}", strings.Join(many, ", ")))
	for i := range 20 {
		s.id = fmt.Sprintf("late%d", i)
		s.runs("{open_files: 60}")
		asking := make(chan result)
		go func() { asking <- s.run("policy", "apply", s.id, next) }()
		disturbed := s.disturb()
		r := <-asking
		if !disturbed || r.code == 0 { // too early, or too late
			continue
		}
		if !strings.Contains(r.err, "container "+s.id+" was killed, because its new policy could not be put into force: RLIMIT_NOFILE of process") {
			t.Errorf("exit code %d: %q", r.code, r.err)
		}
		eventually(t, "it has ended", func() bool { return strings.Contains(s.ok("state", s.id), `"status": "stopped"`) })
		return
	}
	t.Error("never was it stopped before the end of a change")
}

// disturb stops who attends the container once that is frozen, and lowers the limit of its first
// process. It reports whether the policy had not been written down before.
func (s *subject) disturb() bool {
	s.t.Helper()
	c := s.load()
	defer c.Close()
	group, err := c.UnifiedCgroup()
	if err != nil {
		s.t.Fatal(err)
	}
	state, attendant := filepath.Join(s.root, s.id, "state.json"), s.attendant()
	before, _ := os.ReadFile(state)
	for end := time.Now().Add(10 * time.Second); ; {
		events, _ := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if strings.Contains(string(events), "frozen 1") {
			break
		}
		if after, _ := os.ReadFile(state); string(after) != string(before) || time.Now().After(end) {
			return false
		}
	}
	time.Sleep(time.Millisecond)
	if err := unix.Kill(attendant, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = unix.Kill(attendant, unix.SIGCONT) }()
	after, _ := os.ReadFile(state)
	if string(after) != string(before) {
		return false
	}
	if err := unix.Prlimit(c.InitPID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 40, Max: 40}, nil); err != nil {
		s.t.Fatal(err)
	}
	return true
}

// Who attends the container is killed while it changes the policy, perhaps with the container
// frozen: nobody knows what holds it then, and it ends.
func TestApplyAndKilled(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			subjects(t, func(t *testing.T, s *subject, before, after string) {
				pid, file := s.attendant(), write(t, "policy.yml", after)
				asking := make(chan result)
				go func() { asking <- s.run("policy", "apply", s.id, file) }()
				time.Sleep(delay)
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if r := <-asking; r.code != 0 && !strings.Contains(r.err, "attends the container") && !strings.Contains(r.err, "has ended") {
					t.Errorf("exit code %d: %q", r.code, r.err)
				}
				eventually(t, "it has ended", func() bool { return strings.Contains(s.ok("state", s.id), `"status": "stopped"`) })
			})
		})
	}
}

// Who asks for another policy goes away meanwhile: the container has all of it, or nothing.
func TestApplyForNobody(t *testing.T) {
	subjects(t, func(t *testing.T, s *subject, before, after string) {
		after = strings.Replace(after, "open_files: 50", "open_files: 60", 1)
		looks := map[string]string{}
		for range 2 { // the first time what is written down changes its order
			for _, policy := range []string{after, before} {
				if failed := s.apply(policy); failed != "" {
					t.Fatal(failed)
				}
				looks[policy] = s.look()
			}
		}
		file := write(t, "policy.yml", after)
		seen := map[string]int{}
		for delay := range 10 {
			if failed := s.apply(before); failed != "" {
				t.Fatal(failed)
			}
			cmd := s.command("policy", "apply", s.id, file)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(delay) * 4 * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			s.ok("policy", "apply", "--dry-run", s.id, file) // one after another
			switch look := s.look(); look {
			case looks[before]:
				seen["before"]++
			case looks[after]:
				seen["after"]++
			default:
				t.Fatalf("killed after %d ms: it has neither policy:\n%s\nwith the one:\n%s\nwith the other:\n%s", 4*delay, look, looks[before], looks[after])
			}
		}
		t.Log(seen)
	})
}

// cover mounts one file of a container's over another.
func cover(t *testing.T, s *subject, source, dest string) (uncover func()) {
	t.Helper()
	c := s.load()
	defer c.Close()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.InitPID()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	inside := func(do func() error) {
		t.Helper()
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with this
			err := unix.Unshare(unix.CLONE_FS)
			if err == nil {
				err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
			}
			if err == nil {
				err = do()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	inside(func() error { return unix.Mount(source, dest, "", unix.MS_BIND, "") })
	return func() { inside(func() error { return unix.Unmount(dest, 0) }) }
}
