package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExitStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   ExitStatus
		shell  int
	}{
		"zero":    {"true", ExitStatus{}, 0},
		"code":    {"exit 42", ExitStatus{Code: 42}, 42},
		"signal":  {"sleep 60 & kill -9 $!; wait $!; exit $?", ExitStatus{Code: 137}, 137},
		"missing": {"/no/such/program", ExitStatus{Code: 127}, 127},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			_, got := f.output(autoSpec(tc.script))
			if got != tc.want || got.Shell() != tc.shell {
				t.Errorf("status %+v (shell %d), want %+v (%d)", got, got.Shell(), tc.want, tc.shell)
			}
		})
	}
}

func TestOutputAndState(t *testing.T) {
	for name, spec := range map[string]func(string) *specs.Spec{"own ids": autoSpec, "plain": plainSpec} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			o := f.options(spec("echo started; read x; exit 3"))
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			in, feed, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			o.Stdin, o.Stdout = in, w
			c := f.create(o)
			w.Close()
			in.Close()
			wantStatus(t, c, "created")
			other, err := Load(o.Root, o.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			wantStatus(t, other, "created")
			if _, err := other.Wait(); !errors.Is(err, ErrNotCreator) {
				t.Errorf("Wait by another: %v, want ErrNotCreator", err)
			}
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			if got := line(t, r); got != "started" {
				t.Errorf("read %q", got)
			}
			wantStatus(t, c, "running")
			if err := c.Start(); err == nil {
				t.Error("a running container could be started again")
			}
			if err := other.Delete(false); err == nil || !strings.Contains(err.Error(), "not stopped") {
				t.Errorf("deleting a running container: %v", err)
			}
			s, err := other.State()
			if err != nil {
				t.Fatal(err)
			}
			if s.PID != c.InitPID() || s.Rootfs != testRoot || s.Bundle != "/" || s.Owner != "root" || s.Version == "" {
				t.Errorf("state %+v", s)
			}
			feed.Close()
			if status, err := c.Wait(); err != nil || status.Code != 3 {
				t.Errorf("status %+v, %v", status, err)
			}
			wantStatus(t, other, "stopped")
			if s, _ := other.State(); s.PID != 0 {
				t.Errorf("a stopped container has pid %d", s.PID)
			}
			if err := other.Start(); err == nil || err.Error() != "cannot start a container that has stopped" {
				t.Errorf("starting a stopped container: %v", err)
			}
		})
	}
}

func wantStatus(t *testing.T, c *Container, want string) {
	t.Helper()
	if got, err := c.Status(); err != nil || got != want {
		t.Errorf("status %q, %v; want %q", got, err, want)
	}
}

func TestSignals(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(autoSpec("trap 'echo got term; exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
	line(t, r)
	if err := c.Kill(0, false); err != nil {
		t.Errorf("signal 0: %v", err)
	}
	if err := c.Kill(unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if got := line(t, r); got != "got term" {
		t.Errorf("read %q", got)
	}
	if status, _ := c.Wait(); status.Code != 5 {
		t.Errorf("status %+v", status)
	}
	for _, all := range []bool{false, true} {
		if err := c.Kill(unix.SIGTERM, all); !errors.Is(err, ErrNotRunning) {
			t.Errorf("signal to a stopped container (all %v): %v", all, err)
		}
	}
}

func TestKillAllAndCgroup(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(autoSpec("sleep 1000 & sleep 1000 & echo ready; wait"))
	line(t, r)
	pids, err := c.PIDs()
	if err != nil || len(pids) != 3 {
		t.Fatalf("processes %v, %v; want 3", pids, err)
	}
	if err := c.KillCgroup(); err != nil {
		t.Fatal(err)
	}
	if status, _ := c.Wait(); status.Signal != unix.SIGKILL {
		t.Errorf("status %+v", status)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d lives on", pid)
		}
	}
}

// TestSharedPIDs: without a pid namespace the first process's death does not end
// the others, so SIGKILL must go to the cgroup.
func TestSharedPIDs(t *testing.T) {
	f := newFixture(t)
	s := plainSpec("sleep 1000 & echo ready; wait")
	s.Linux.Namespaces = s.Linux.Namespaces[1:]
	c, r := f.start(s)
	line(t, r)
	pids, err := c.PIDs()
	if err != nil || len(pids) != 2 {
		t.Fatalf("processes %v, %v; want 2", pids, err)
	}
	if err := c.Kill(unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if status, _ := c.Wait(); status.Signal != unix.SIGKILL {
		t.Errorf("status %+v", status)
	}
}

func TestTwoGuestsHaveDifferentIDs(t *testing.T) {
	f := newFixture(t)
	const script = "echo up; read x"
	a, ra := f.start(autoSpec(script + "; sleep 1000"))
	b, rb := f.start(autoSpec(script + "; sleep 1000"))
	line(t, ra)
	line(t, rb)
	uids := map[uint32]bool{}
	for _, c := range []*Container{a, b} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join("/proc", pidString(c)), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid < FirstID || st.Uid >= FirstID+idCount || st.Uid != c.entry.IDs.First {
			t.Errorf("host uid %d", st.Uid)
		}
		uids[st.Uid] = true
	}
	if len(uids) != 2 {
		t.Errorf("both guests have host uid %v", uids)
	}
}

func pidString(c *Container) string {
	s, _ := c.State()
	return strconv.Itoa(s.PID)
}

func TestOwnRoot(t *testing.T) {
	f := newFixture(t)
	s := autoSpec("cat /etc/hosts; (: >/x) 2>/dev/null && echo wrote; : >/tmp/y && echo tmp; ls -d /data/in /srv/deep/file; id -u; cat /proc/self/mountinfo")
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/data/in", Source: host, Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/srv/deep/file", Source: filepath.Join(host, "file"), Options: []string{"bind", "ro"}},
	)
	o := f.options(s)
	o.RootFiles = map[string][]byte{"/etc/hosts": []byte("127.0.0.1 here\n")}
	r, w, _ := os.Pipe()
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	c := f.create(o)
	w.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"127.0.0.1 here", "tmp", "/data/in", "/srv/deep/file", "0"} {
		if got := line(t, r); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
	}
	rest := make([]byte, 1<<16)
	for n := 0; ; {
		m, err := r.Read(rest[n:])
		if n += m; err != nil {
			rest = rest[:n]
			break
		}
	}
	if strings.Contains(string(rest), testRoot) || strings.Contains(string(rest), f.run) {
		t.Errorf("the guest's mountinfo names the host's paths:\n%s", rest)
	}
	for _, path := range []string{"/data", "/srv"} {
		if _, err := os.Stat(filepath.Join(testRoot, path)); err == nil {
			t.Errorf("the shared root was written to: %s", path)
		}
	}
}

// TestClientFiles: a file of the client's that nobody else can read is readable in
// the guest through an idmapped mount, and what the guest writes is the client's.
func TestClientFiles(t *testing.T) {
	f := newFixture(t)
	host := t.TempDir()
	const client = 12345
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{host, filepath.Join(host, "secret")} {
		if err := os.Chown(p, client, client); err != nil {
			t.Fatal(err)
		}
	}
	s := autoSpec("cat /data/secret; : >/data/new; ls /data")
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: placeholder, Size: 1}}
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: "/data", Source: host, Options: []string{"bind", "rw", "idmap"}, UIDMappings: ids, GIDMappings: ids,
	})
	o := f.options(s)
	o.ClientUID, o.ClientGID = client, client
	r, w, _ := os.Pipe()
	defer r.Close()
	o.Stdout, o.Stderr = w, w
	c := f.create(o)
	w.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"s3cret", "new", "secret"} {
		if got := line(t, r); got != want {
			t.Errorf("read %q, want %q", got, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(host, "new"), &st); err != nil || st.Uid != client || st.Gid != client {
		t.Errorf("the guest's file belongs to %d:%d, %v; want the client %d", st.Uid, st.Gid, err, client)
	}
}

func TestDetachedOutlivesItsOwner(t *testing.T) {
	f := newFixture(t)
	o := f.options(autoSpec("echo up; sleep 1000"))
	c, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(); err != nil {
		t.Fatal(err)
	}
	if report, err := GC(f.run); err != nil || len(report.Containers) > 0 {
		t.Errorf("gc of a detached container: %+v, %v", report, err)
	}
	states, err := List(o.Root)
	if err != nil || len(states) != 1 || states[0].ID != o.ID || states[0].Status != "created" {
		t.Errorf("list: %+v, %v", states, err)
	}
	other, err := Load(o.Root, o.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(true); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(o.Root, o.ID); !errors.Is(err, ErrNotExist) {
		t.Errorf("loading a deleted container: %v", err)
	}
	_, _ = c.Wait()
	c.Close()
}

// TestManyAtOnce: containers come and go on several goroutines; nobody removes a
// parent that another is about to use.
func TestManyAtOnce(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for round := range 4 {
				spec := autoSpec("exit 3")
				if worker%2 == 0 {
					spec = plainSpec("exit 3")
				}
				id := fmt.Sprintf("many-%d-%d-%d", os.Getpid(), worker, round)
				o := CreateOptions{Root: f.root(), RunDir: f.run, Bundle: "/", Spec: spec, ID: id}
				if err := oneLife(o); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
}

func oneLife(o CreateOptions) error {
	c, err := Create(context.Background(), o)
	if err != nil {
		return err
	}
	err = c.Start()
	if status, waitErr := c.Wait(); status.Code != 3 {
		err = errors.Join(err, waitErr, fmt.Errorf("status %+v", status))
	}
	return errors.Join(err, c.Delete(false))
}
