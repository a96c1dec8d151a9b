package enforce_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// loadFiles loads the LSM programs, or skips where the kernel refuses them.
func loadFiles(t *testing.T) *enforce.FilePrograms {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF")
	}
	p, err := enforce.LoadFiles()
	if errors.Is(err, enforce.ErrNotSupported) {
		if os.Getenv("PSI_TEST_VM") != "" {
			t.Fatalf("the second kernel has BPF-LSM: %v", err)
		}
		t.Skipf("needs BPF-LSM: %v", err)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// fileGuest is a privileged process in a cgroup and a mount namespace of its own.
type fileGuest struct {
	*child
	*enforce.FileGuest

	cgroup, own, host string // directories: what it may write, and the policy's
	files             enforce.Files
	channel           int // to its fd 3
}

func startFileGuest(t *testing.T, p *enforce.FilePrograms) *fileGuest {
	t.Helper()
	base := publicTemp(t)
	g := &fileGuest{cgroup: newCgroup(t), own: base + "/own", host: base + "/host"}
	for path, mode := range map[string]os.FileMode{"own": 0, "host": 0, "host/a.csv": 0o644, "host/a.txt": 0o755, "host/sub/b.csv": 0o644, "host/empty": 0} {
		full := filepath.Join(base, path)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		if err == nil && mode == 0 {
			err = os.Mkdir(full, 0o755)
		} else if err == nil {
			err = os.WriteFile(full, []byte("x"), mode)
		}
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "channel")
	g.channel = pair[0]
	g.child = startChildIn(t, g.cgroup, exe, unix.CLONE_NEWNS, theirs)
	theirs.Close()
	t.Cleanup(func() { unix.Close(g.channel) })
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+itoa(g.cmd.Process.Pid)+"/ns/mnt", &st); err != nil {
		t.Fatal(err)
	}
	g.files = enforce.Files{
		MountNamespace: uint32(st.Ino),
		Own: []policy.FSRule{
			{Mode: policy.Read, Pattern: "/**"}, {Mode: policy.Execute, Pattern: "/usr"}, {Mode: policy.Execute, Pattern: exe},
			{Mode: policy.Write, Pattern: g.own}, {Mode: policy.Write, Pattern: "/proc"}, {Mode: policy.Write, Pattern: "/sys/fs/cgroup"}, {Mode: policy.Write, Pattern: "/dev"},
		},
		Rules:  []policy.FSRule{{Mode: policy.Write, Pattern: g.host + "/*.csv"}},
		Places: []string{g.host},
	}
	if g.FileGuest, err = p.Attach(g.cgroup, g.files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// publicTemp is a directory outside of /tmp, which policies cannot name.
func publicTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "psi-enforce-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// ask checks one operation; want 0 means that it succeeds.
func (g *fileGuest) ask(op, path string, want syscall.Errno) {
	g.t.Helper()
	if r := g.do(request{Op: op, Addr: path}); r.Errno != want {
		g.t.Errorf("%s %q: %v, want %v", op, path, r.Errno, want)
	}
}

// TestFileHooks has a guest with every capability and no seccomp filter try what no
// guest may do.
func TestFileHooks(t *testing.T) {
	g := startFileGuest(t, loadFiles(t))
	const no, never, ok = syscall.EACCES, syscall.EPERM, syscall.Errno(0)
	listen(t, "unix", g.host+"/socket.csv")
	listen(t, "unix", "@psi-abstract")
	listen(t, "unixgram", g.host+"/datagrams.csv")
	for _, try := range []struct {
		op, path string
		want     syscall.Errno
	}{
		{"open", g.host + "/a.csv", ok}, {"open", g.host + "/a.txt", no}, {"open", g.host + "/sub/b.csv", no}, {"open", g.host, ok}, {"open", g.host + "/sub", no},
		{"create", g.host + "/new.csv", ok}, {"create", g.host + "/new.txt", no}, {"open", "/etc/passwd", ok}, {"create", "/etc/psi-test", no}, {"create", g.own + "/x", ok},
		{"execute", g.host + "/a.txt", no}, {"execute", "/bin/true", ok}, {"execute-memfd", "", no},
		{"protect", g.host + "/a.csv", no}, {"protect", "/bin/true", ok},
		{"mkdir", g.host + "/dir", no}, {"mkdir", g.host + "/dir.csv", ok}, {"rmdir", g.host + "/empty", no}, {"rmdir", g.host + "/dir.csv", ok},
		{"symlink", g.host + "/link", no}, {"symlink", g.host + "/link.csv", ok}, {"unlink", g.host + "/a.txt", no}, {"unlink", g.host + "/link.csv", ok},
		{"truncate", g.host + "/a.txt", no}, {"chmod", g.host + "/a.txt", no}, {"chown", g.host + "/a.txt", no}, {"removexattr", g.host + "/a.csv", never},
		{"mknod", g.own + "/null", never}, {"mkfifo", g.own + "/fifo", ok}, {"mkfifo", g.host + "/fifo.csv", no}, {"setxattr", g.own + "/x", never},
		{"mount", g.own, never}, {"umount", "/dev", never}, {"remount", g.own, never}, {"pivot_root", g.own, never}, {"move_mount", g.own, never}, {"chroot", g.own, never}, {"fsmount", "", never},
		{"new-mount-namespace", "/etc/passwd", no}, {"host-mount-namespace", "/etc/passwd", no}, {"open", "/proc/1/root/etc/passwd", no},
		{"link", "/etc/passwd\n" + g.host + "/link.csv", no}, {"link", g.host + "/a.txt\n" + g.host + "/link.csv", no}, {"link", g.host + "/a.csv\n" + g.own + "/link", ok},
		{"open-in-clone", g.host + "/a.txt", no}, {"open-in-clone", g.host + "/a.csv", no}, {"open-by-handle", g.host + "/a.txt", no}, {"open-by-handle", g.host + "/a.csv", ok},
		{"child-cgroup-open", g.host + "/a.txt", no}, {"child-cgroup-open", g.host + "/a.csv", ok},
		{"user-namespace", "", never}, {"ptrace", "", never}, {"traceme", "", never}, {"bpf", "", never}, {"perf", "", never},
		{"read-parent", "", never}, {"write-parent", "", no}, {"init_module", "", never}, {"finit_module", "", never}, {"kexec", "", never}, {"kexec-file", "", never}, {"set-mm", "", never}, {"prctl", "", ok},
		{"socket", "2 1 0", ok}, {"socket", "10 1 6", ok}, {"socket", "1 2 0", ok}, {"socket", "17 3 0", never}, {"socket", "16 3 0", never}, {"socket", "40 1 0", never}, {"socket", "2 3 1", never}, {"socket", "2 1 262", never},
		{"listen", "", never}, {"pairs", "", ok}, {"unix-connect", g.host + "/socket.csv", no}, {"unix-connect", "@psi-abstract", never}, {"unix-send", g.host + "/datagrams.csv", no},
	} {
		g.ask(try.op, try.path, try.want)
	}
	for path, want := range map[string]syscall.Errno{"/etc/passwd": no, g.host + "/a.csv": no} { // opened in this namespace
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendmsg(g.channel, []byte("x"), unix.UnixRights(int(file.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
		g.ask("receive", path, want)
		file.Close()
	}
	if n, err := g.Denied(); err != nil || n < 30 {
		t.Errorf("%d denials were counted, %v", n, err)
	}
}

// TestFileHooksControl has the same guest, held to nothing, do what the programs
// refuse: nobody else would have. What would reach the machine is left out.
func TestFileHooksControl(t *testing.T) {
	elsewhere := newCgroup(t)
	g := startFileGuest(t, loadFiles(t))
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, g, elsewhere)
	listen(t, "unix", g.host+"/socket.csv")
	for _, try := range []struct{ op, path string }{
		{"open", g.host + "/a.txt"}, {"create", g.host + "/new.txt"}, {"execute", "/bin/true"}, {"execute-memfd", ""}, {"mkfifo", g.host + "/fifo.csv"}, {"chroot", g.own}, {"fsmount", ""},
		{"open-in-clone", g.host + "/a.txt"}, {"open-by-handle", g.host + "/a.txt"}, {"link", g.host + "/a.txt\n" + g.host + "/link.csv"}, {"write-parent", ""},
		{"mknod", g.own + "/null"}, {"new-mount-namespace", "/etc/passwd"}, {"host-mount-namespace", "/etc/passwd"}, {"user-namespace", ""}, {"traceme", ""}, {"perf", ""},
		{"socket", "17 3 0"}, {"socket", "16 3 0"}, {"socket", "2 3 1"}, {"listen", ""}, {"unix-connect", g.host + "/socket.csv"},
		{"protect", g.host + "/a.csv"}, {"mkdir", g.host + "/dir"}, {"rmdir", g.host + "/empty"}, {"symlink", g.host + "/link"},
		{"truncate", g.host + "/a.txt"}, {"chmod", g.host + "/a.txt"}, {"chown", g.host + "/a.txt"}, {"unlink", g.host + "/a.txt"},
		{"setxattr", g.host + "/a.csv"}, {"removexattr", g.host + "/a.csv"},
	} {
		g.ask(try.op, try.path, 0)
	}
	for op, want := range map[string]syscall.Errno{"bpf": syscall.EINVAL, "init_module": syscall.ENOEXEC, "finit_module": syscall.ENOEXEC} {
		g.ask(op, "", want)
	}
}

func listen(t *testing.T, network, path string) {
	t.Helper()
	if network == "unixgram" {
		conn, err := net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return
	}
	l, err := net.Listen(network, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestFileDenials hears of denials, with the path and the rule.
func TestFileDenials(t *testing.T) {
	g := startFileGuest(t, loadFiles(t))
	files := g.files
	files.Rules = append(slices.Clone(files.Rules), policy.FSRule{Mode: policy.Deny, Pattern: g.host + "/a.csv"})
	if err := g.Update(files); err != nil {
		t.Fatal(err)
	}
	heard := make(chan enforce.Denial, 100)
	if err := g.OnDenied(func(d enforce.Denial) { heard <- d }); err != nil {
		t.Fatal(err)
	}
	g.ask("open", g.host+"/a.csv", syscall.EACCES)
	g.ask("create", g.host+"/new.txt", syscall.EACCES)
	g.ask("execute", g.host+"/a.txt", syscall.EACCES)
	g.ask("mount", g.own, syscall.EPERM)
	g.ask("socket", "17 3 0", syscall.EPERM)
	for _, want := range []enforce.Denial{
		{Kind: enforce.DeniedRead, Path: g.host + "/a.csv", Rule: 1, Errno: syscall.EACCES},
		{Kind: enforce.DeniedCreate, Path: g.host + "/new.txt", Rule: enforce.NoRule, Errno: syscall.EACCES},
		{Kind: enforce.DeniedExec, Path: g.host + "/a.txt", Rule: enforce.NoRule, Errno: syscall.EACCES},
		{Kind: enforce.DeniedMount, Rule: enforce.NoRule, Errno: syscall.EPERM},
		{Kind: enforce.DeniedSocket, Rule: enforce.NoRule, Errno: syscall.EPERM, Socket: [3]uint32{17, 3, 0}},
	} {
		got := <-heard
		if got.PID == 0 || got.Command == "" || time.Since(got.Time).Abs() > time.Minute {
			t.Errorf("%+v", got)
		}
		got.PID, got.Command, got.Time = 0, "", time.Time{}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if n, err := g.Denied(); err != nil || n != 5 {
		t.Errorf("%d denials, %v", n, err)
	}
}

// TestFileUpdate changes the rules of a guest, and forgets it.
func TestFileUpdate(t *testing.T) {
	p := loadFiles(t)
	g := startFileGuest(t, p)
	g.ask("open", g.host+"/a.txt", syscall.EACCES)
	next := g.files
	next.Rules = []policy.FSRule{{Mode: policy.Read, Pattern: g.host + "/*.txt"}}
	if err := g.Update(next); err != nil {
		t.Fatal(err)
	}
	g.ask("open", g.host+"/a.txt", 0)
	g.ask("open", g.host+"/a.csv", syscall.EACCES)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g.ask("open", g.host+"/a.txt", syscall.EACCES) // it still runs: nothing may
	g.ask("open", "/etc/passwd", syscall.EACCES)
	if err := g.Update(next); !errors.Is(err, os.ErrClosed) {
		t.Errorf("updating a closed guest: %v", err)
	}
}

// TestFilesOutliveLoader kills the process that attached; the guest stays held, and
// nothing is left when it has gone and the programs are collected.
func TestFilesOutliveLoader(t *testing.T) {
	p := loadFiles(t)
	g := startFileGuest(t, p)
	other := startFileGuest(t, p)
	attachAndDie(t, other)
	other.ask("open", other.host+"/a.txt", 0) // its rules, not the first ones
	other.ask("open", other.host+"/a.csv", syscall.EACCES)
	if removed, err := collectFiles(); err != nil || len(removed) != 0 {
		t.Errorf("with guests, %q were collected: %v", removed, err)
	}
	g.ask("open", g.host+"/a.txt", syscall.EACCES)
	if err := errors.Join(g.Close(), other.Close()); err != nil {
		t.Fatal(err)
	}
}

// attachAndDie has another process attach to a guest's cgroup; it is killed then.
func attachAndDie(t *testing.T, g *fileGuest) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", g.cgroup)
	cmd.Env = append(os.Environ(), childEnv+"=attach-files", "PSI_MNT="+itoa(int(g.files.MountNamespace)), "PSI_READ="+g.host+"/*.txt")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("the attaching process was to be killed: %s", out)
	}
}

// collectFiles collects, and returns what it removed of the file programs.
func collectFiles() ([]string, error) {
	removed, err := enforce.Collect()
	return slices.DeleteFunc(removed, func(path string) bool {
		return strings.HasPrefix(path, enforce.NetDir()) || path == enforce.ThrottleDir()
	}), err
}

// TestFilesCollected is last of a guest: the programs go, and come back.
func TestFilesCollected(t *testing.T) {
	p := loadFiles(t)
	removed, err := collectFiles()
	if err != nil || len(removed) != 1 {
		t.Fatalf("collected %q, %v", removed, err)
	}
	if _, err := os.Stat("/sys/fs/bpf/psi"); !os.IsNotExist(err) {
		t.Errorf("/sys/fs/bpf/psi: %v", err)
	}
	// A guest attached through what is no longer pinned must be held all the same.
	g := startFileGuest(t, p)
	g.ask("open", g.host+"/a.txt", syscall.EACCES)
	if entries, err := os.ReadDir("/sys/fs/bpf/psi"); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestVersionsCoexist has two versions of psi hold guests at the same time: each its
// own, and each version goes with its last.
func TestVersionsCoexist(t *testing.T) {
	g := startFileGuest(t, loadFiles(t))
	t.Run("another", func(t *testing.T) {
		p, err := enforce.LoadFilesOf("another")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
		other := startFileGuest(t, p)
		for _, guest := range []*fileGuest{g, other} {
			guest.ask("open", guest.host+"/a.csv", 0)
			guest.ask("open", guest.host+"/a.txt", syscall.EACCES)
			if n, err := guest.Denied(); err != nil || n != 1 {
				t.Errorf("%d denials, %v: both versions have decided", n, err)
			}
		}
		if removed, err := collectFiles(); err != nil || len(removed) != 0 {
			t.Errorf("with guests of both, %q were collected: %v", removed, err)
		}
	})
	if removed, err := collectFiles(); err != nil || !slices.Equal(removed, []string{"/sys/fs/bpf/psi/another"}) {
		t.Errorf("collected %q, %v", removed, err)
	}
	g.ask("open", g.host+"/a.txt", syscall.EACCES)
}

// TestFilesNeedNamespace refuses what would pass every process for the runtime.
func TestFilesNeedNamespace(t *testing.T) {
	p := loadFiles(t)
	if _, err := p.Attach(newCgroup(t), enforce.Files{}); err == nil {
		t.Error("attached without a mount namespace")
	}
}

// attachFilesMain attaches to the cgroup of the first argument and is killed.
func attachFilesMain() int {
	p, err := enforce.LoadFiles()
	if err != nil {
		return 0
	}
	var namespace uint32
	for _, c := range os.Getenv("PSI_MNT") {
		namespace = 10*namespace + uint32(c-'0')
	}
	files := enforce.Files{MountNamespace: namespace, Own: []policy.FSRule{{Mode: policy.Read, Pattern: "/**"}},
		Rules: []policy.FSRule{{Mode: policy.Read, Pattern: os.Getenv("PSI_READ")}}}
	files.Places = policy.Places(files.Rules)
	if _, err := p.Attach(os.Args[1], files); err != nil {
		return 0
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func itoa(n int) string { return strconv.Itoa(n) }

// TestFileTablesAreShared: guests of one policy have one table in the kernel, whatever their
// namespaces, and it goes when none of them needs it.
func TestFileTablesAreShared(t *testing.T) {
	p := loadFiles(t)
	guests := []*fileGuest{startFileGuest(t, p), startFileGuest(t, p), startFileGuest(t, p)}
	before := p.Tables()
	common := guests[0].files
	for _, g := range guests {
		common.MountNamespace = g.files.MountNamespace
		common.Rules = []policy.FSRule{{Mode: policy.Read, Pattern: guests[0].host + "/*.txt"}}
		if err := g.Update(common); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Tables(); n != before+1 {
		t.Errorf("%d tables for three guests of one policy", n-before)
	}
	if err := guests[0].Close(); err != nil {
		t.Fatal(err)
	}
	// The table is there for the others, and only theirs are left.
	if n, err := p.SweepTables(); err != nil || n != 1 {
		t.Errorf("%d tables are left, %v", n, err)
	}
	guests[1].ask("open", guests[0].host+"/a.txt", 0)
	guests[2].ask("open", guests[0].host+"/a.csv", syscall.EACCES)
}
