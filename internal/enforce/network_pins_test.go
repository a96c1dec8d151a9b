package enforce_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
)

// loadOther is load for a version of psi whose programs have another digest.
func loadOther(t *testing.T, version string) *enforce.Programs {
	t.Helper()
	p, err := enforce.LoadOf(version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// loadMain loads a version, says so, waits to be told, and attaches to the cgroups that it has.
func loadMain() int {
	p, err := enforce.LoadOf(os.Args[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("owner", p.OwnerDir())
	_, _ = io.ReadAll(os.Stdin)
	for _, dir := range os.Args[2:] {
		if _, err := p.Attach(dir, nil, nil); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	if err := p.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestFirstStarts has processes start at once where nothing is pinned yet: all attach the same
// programs, and each has maps of its own.
func TestFirstStarts(t *testing.T) {
	const processes = 4
	var dirs [processes]string
	var commands [processes]*exec.Cmd
	var inputs [processes]io.Closer
	var outputs [processes]io.Reader
	for i := range processes {
		dirs[i] = newCgroup(t)
		cmd := exec.Command("/proc/self/exe", "first", dirs[i])
		cmd.Env = append(os.Environ(), childEnv+"=load")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if outputs[i], err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		commands[i], inputs[i] = cmd, in
	}
	for _, cmd := range commands {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	owners := make(map[string]bool)
	for i := range processes {
		var owner string
		if _, err := fmt.Fscanf(outputs[i], "owner %s\n", &owner); err != nil || !strings.HasPrefix(owner, "/sys/fs/bpf/psi/first/owners/") {
			t.Errorf("a process says its maps are in %q: %v", owner, err)
		}
		owners[owner] = true
	}
	if len(owners) != processes {
		t.Errorf("%d processes have the maps in %v", processes, owners)
	}
	if removed, err := enforce.Collect(); err != nil || slices.Contains(removed, "/sys/fs/bpf/psi/first") {
		t.Errorf("collected %q while processes are about to attach, %v", removed, err)
	}
	for i, cmd := range commands {
		inputs[i].Close()
		rest, _ := io.ReadAll(outputs[i])
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, rest)
		}
	}
	for _, dir := range dirs[1:] {
		if own, first := attachedPrograms(t, dir), attachedPrograms(t, dirs[0]); len(own) != 7 || !slices.Equal(own, first) {
			t.Errorf("programs %v are at one cgroup and %v at another", own, first)
		}
	}
	for _, dir := range dirs {
		removeCgroup(t, dir)
	}
	if removed, err := enforce.Collect(); err != nil || !slices.Contains(removed, "/sys/fs/bpf/psi/first") {
		t.Errorf("collected %q, %v", removed, err)
	}
}

// TestPolicyOutlivesItsProcess kills the process that attached. Its guest stays held, whoever comes
// and goes, and when it is gone so is all that was there for it.
func TestPolicyOutlivesItsProcess(t *testing.T) {
	p, dir := load(t), newCgroup(t)
	c := startChild(t, dir)
	if out, err := attachElsewhere(dir, nil); err != nil {
		t.Fatal(err, out)
	}
	held := func() {
		t.Helper()
		c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
		c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
	}
	held()
	dead := deadOwners(t)
	if len(dead) != 1 {
		t.Fatalf("%q are of dead processes, want one directory", dead)
	}
	for range 2 { // who comes next does not get the guest's maps
		next := load(t)
		if next.OwnerDir() == dead[0] || next.OwnerDir() == p.OwnerDir() {
			t.Errorf("a process has got the maps in %s", next.OwnerDir())
		}
		attach(t, next, newCgroup(t), "127.0.0.1:81")
	}
	if removed, err := enforce.Collect(); err != nil || slices.Contains(removed, dead[0]) {
		t.Errorf("with a guest, %q were collected: %v", removed, err)
	}
	held()
	c.end()
	removeCgroup(t, dir)
	if removed, err := enforce.Collect(); err != nil || !slices.Contains(removed, dead[0]) {
		t.Errorf("without its guest, %q were collected: %v", removed, err)
	}
	if left := deadOwners(t); len(left) != 0 {
		t.Errorf("%q are left", left)
	}
}

// deadOwners are the directories of maps whose process has been killed.
func deadOwners(t *testing.T) (dead []string) {
	t.Helper()
	all, err := filepath.Glob(enforce.NetDir() + "/owners/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		dir, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
			dead = append(dead, path)
		}
		dir.Close()
	}
	return dead
}

// TestMapsAreHandedOn: who takes what a process has left sees nothing of its guests.
func TestMapsAreHandedOn(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	p, err := enforce.Load()
	if err != nil {
		t.Fatal(err)
	}
	before := p.OwnerDir()
	g, err := p.Attach(dir, endpoints(t, "127.0.0.1:80"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm) // an event that nobody reads
	if err := errors.Join(g.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	other := newCgroup(t)
	c2 := startChild(t, other)
	next := load(t)
	if next.OwnerDir() != before {
		t.Errorf("the maps in %s are not handed on, the next has those in %s", before, next.OwnerDir())
	}
	all := watch(t, attach(t, next, other, "127.0.0.1:81"))
	c.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
	c2.expect("connect", "tcp4", "127.0.0.1:82", "connect", eperm)
	await(t, "a denial", func() bool { return len(all.list()) > 0 })
	if got := all.list(); len(got) != 1 || got[0].Address.Port() != 82 || got[0].Suppressed != 0 {
		t.Errorf("told %+v", got)
	}
}

// TestOwners has many come and go: no two have the same maps, and few are kept.
func TestOwners(t *testing.T) {
	newCgroup(t) // needs root
	seen := make(map[string]bool)
	var all []*enforce.Programs
	for range 18 {
		p := loadOther(t, "owners")
		if seen[p.OwnerDir()] {
			t.Errorf("two have the maps in %s", p.OwnerDir())
		}
		seen[p.OwnerDir()] = true
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	for kind, want := range map[string]int{"owners": 0, "spare": 16} {
		if found, err := filepath.Glob("/sys/fs/bpf/psi/owners/" + kind + "/*"); err != nil || len(found) != want {
			t.Errorf("%d %s, want %d: %v", len(found), kind, want, err)
		}
	}
	if removed, err := enforce.Collect(); err != nil || !slices.Contains(removed, "/sys/fs/bpf/psi/owners") {
		t.Errorf("collected %q, %v", removed, err)
	}
}

// TestNetworkVersionsCoexist has two versions of psi hold a guest each.
func TestNetworkVersionsCoexist(t *testing.T) {
	one, other := newCgroup(t), newCgroup(t)
	c1, c2 := startChild(t, one), startChild(t, other)
	attach(t, load(t), one, "127.0.0.1:80")
	g2 := attach(t, loadOther(t, "another"), other, "127.0.0.1:81")
	for range 2 {
		c1.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
		c1.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
		c2.expect("connect", "tcp4", "127.0.0.1:81", "", 0)
		c2.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
		if removed, err := enforce.Collect(); err != nil || slices.ContainsFunc(removed, func(path string) bool {
			return path == enforce.NetDir() || strings.HasSuffix(path, "another")
		}) {
			t.Errorf("collected %q, %v", removed, err)
		}
		if attachedPrograms(t, one)[0] == attachedPrograms(t, other)[0] {
			t.Error("two versions have the same programs")
		}
	}
	if n, err := g2.Denied(); n != 2 || err != nil {
		t.Errorf("%d denials, want 2 (%v)", n, err)
	}
}

// TestBrokenPins takes a pin away: guests stay held, and the next process makes it all anew.
func TestBrokenPins(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	before := loadOther(t, "broken")
	attach(t, before, dir, "127.0.0.1:80")
	for _, name := range []string{"connect4", "spare"} {
		path := "/sys/fs/bpf/psi/broken/" + name
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		// Whoever writes here as root puts more in the way, and moves the maps of one who lives.
		_ = os.Rename(before.OwnerDir(), "/sys/fs/bpf/psi/broken/spare/0")
		for _, stray := range []string{"spare/77", "spare/x", "owners/x", "owners/78"} {
			_ = os.Mkdir("/sys/fs/bpf/psi/broken/"+stray, 0o700)
		}
		other := newCgroup(t)
		attach(t, loadOther(t, "broken"), other, "127.0.0.1:81")
		if n := len(attachedPrograms(t, other)); n != 7 {
			t.Errorf("%d programs attached", n)
		}
		c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
		c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("after %s has gone: %v", name, err)
		}
	}
}

// TestWithoutPins is a host on which nothing can be pinned: programs are the process's own.
func TestWithoutPins(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), childEnv+"=attach", "PSI_NO_PINS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	before := len(deadOwners(t))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
	if len(deadOwners(t)) != before {
		t.Error("it has pinned something")
	}
}
