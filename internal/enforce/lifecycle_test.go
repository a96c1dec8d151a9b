package enforce_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

func TestCloseDenies(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	g := attach(t, load(t), dir, "127.0.0.1:80")
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
	for range 2 {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
	if n, err := g.Denied(); n != 1 || err != nil {
		t.Errorf("after Close: %d denials, want 1 (%v)", n, err)
	}
	if err := g.Update(nil, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("updating a closed guest: %v", err)
	}
}

func TestAttachTwice(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	p := load(t)
	attach(t, p, dir, "127.0.0.1:80")
	if _, err := p.Attach(dir, endpoints(t, "127.0.0.1:81"), nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("attaching twice: %v", err)
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)

	// Another process finds the same programs.
	if _, err := load(t).Attach(dir, endpoints(t, "127.0.0.1:81"), nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("attaching twice, by two: %v", err)
	}
	c.expect("connect", "tcp4", "127.0.0.1:80", "", 0)

	another, err := enforce.LoadOf("another") // version: both must agree
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := another.Close(); err != nil {
			t.Error(err)
		}
	})
	attach(t, another, dir, "127.0.0.1:81")
	c.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
	c.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
}

func TestGuestsAreApart(t *testing.T) {
	p := load(t)
	one, other := newCgroup(t), newCgroup(t)
	c1, c2 := startChild(t, one), startChild(t, other)
	g1 := attach(t, p, one, "127.0.0.1:80")
	g2 := attach(t, p, other, "127.0.0.1:81")
	c1.expect("connect", "tcp4", "127.0.0.1:80", "", 0)
	c1.expect("connect", "tcp4", "127.0.0.1:81", "connect", eperm)
	c2.expect("connect", "tcp4", "127.0.0.1:80", "connect", eperm)
	c2.expect("connect", "tcp4", "127.0.0.1:81", "", 0)
	if err := g1.Close(); err != nil {
		t.Fatal(err)
	}
	c2.expect("connect", "tcp4", "127.0.0.1:81", "", 0)
	if n, err := g2.Denied(); n != 1 || err != nil {
		t.Errorf("%d denials, want 1 (%v)", n, err)
	}
}

// attachMain attaches to the cgroup of the first argument and dies.
func attachMain() int {
	if os.Getenv("PSI_NO_PINS") != "" {
		if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_RDONLY, ""); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	if _, err := enforce.Attach(os.Args[1], []policy.Endpoint{{Host: "127.0.0.1", Port: 80}}, nil); err != nil {
		fmt.Println(errors.Is(err, enforce.ErrNotSupported), err)
		return 1
	}
	return 0
}

func attachElsewhere(dir string, attr *syscall.SysProcAttr) (string, error) {
	cmd := exec.Command("/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), childEnv+"=attach")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestNotSupported(t *testing.T) {
	dir := newCgroup(t)
	out, err := attachElsewhere(dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	if err == nil || !strings.HasPrefix(out, "true ") || !strings.Contains(out, "CAP_BPF") {
		t.Errorf("without capabilities: %q (%v)", out, err)
	}
	_, err = enforce.Attach(t.TempDir(), nil, nil)
	var missing *enforce.NotSupportedError
	if !errors.Is(err, enforce.ErrNotSupported) || !errors.As(err, &missing) || missing.Missing != "cgroup2" {
		t.Errorf("no cgroup2: %v", err)
	}
	if _, err = enforce.Attach(dir+"/none", nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// attachedPrograms lists the programs at a cgroup, of all kinds used here.
func attachedPrograms(t *testing.T, dir string) []ebpf.ProgramID {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ids []ebpf.ProgramID
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInetSockCreate,
	} {
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range r.Programs {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

func TestNothingIsLeft(t *testing.T) {
	newCgroup(t) // needs root
	fds := countFDs(t)
	for _, order := range []string{"close first", "remove first"} {
		dir := newCgroup(t)
		p, err := enforce.LoadOf("left")
		if err != nil {
			t.Fatal(err)
		}
		g, err := p.Attach(dir, endpoints(t, "127.0.0.1:80", "0.0.0.0/0:443"), nil)
		if err != nil {
			t.Fatal(err)
		}
		ids := attachedPrograms(t, dir)
		if len(ids) != 7 {
			t.Errorf("%d programs attached, want 7", len(ids))
		}
		if order == "remove first" {
			removeCgroup(t, dir)
		}
		if err := errors.Join(g.Close(), p.Close()); err != nil {
			t.Errorf("%s: %v", order, err)
		}
		removeCgroup(t, dir)
		if removed, err := enforce.Collect(); err != nil || !slices.Contains(removed, "/sys/fs/bpf/psi/left") {
			t.Errorf("%s: collected %q, %v", order, removed, err)
		}
		for _, id := range ids {
			awaitProgramGone(t, id)
		}
	}
	// A failed Attach leaves the cgroup as it was.
	dir := newCgroup(t)
	p := load(t)
	blocker := attach(t, p, dir)
	if _, err := p.Attach(dir, nil, nil); err == nil {
		t.Error("attaching twice: no error")
	}
	if ids := attachedPrograms(t, dir); len(ids) != 7 {
		t.Errorf("%d programs, want the first guest's 7", len(ids))
	}
	if err := errors.Join(blocker.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if now := countFDs(t); now != fds {
		t.Errorf("%d file descriptors, %d before", now, fds)
	}
}

// awaitProgramGone waits: the kernel frees programs of a removed cgroup later.
func awaitProgramGone(t *testing.T, id ebpf.ProgramID) {
	t.Helper()
	for range 300 {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, unix.ENOENT) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("program %d is still in the kernel", id)
}

func countFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestConcurrentGuests(t *testing.T) {
	newCgroup(t) // needs root
	p := load(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				dir := newCgroup(t)
				g, err := p.Attach(dir, endpoints(t, "127.0.0.1:80", "10.0.0.0/8:443"), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(g.Update(endpoints(t, "127.0.0.1:81"), nil), g.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
