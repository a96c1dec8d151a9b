package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a change of policy needs is taken from whoever attends the container, one thing
// after another, and by the container itself. Each time the container has to have exactly
// the policy that it had, and the error has to say what failed.

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
