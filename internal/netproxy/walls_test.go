package netproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
)

const childEnv = "PSI_NETPROXY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	os.Exit(childMain())
}

// childMain is a guest: one destination a line, one answer a line. The answer to
// "1000 ADDR" is about that many connections, all open at once.
func childMain() int {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		count, addr := 1, lines.Text()
		if n, rest, ok := strings.Cut(addr, " "); ok {
			count, _ = strconv.Atoi(n)
			addr = rest
		}
		fmt.Println(childConnect(count, addr))
	}
	return 0
}

func childConnect(count int, addr string) string {
	conns := make([]net.Conn, count)
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range conns {
		all.Go(func() {
			conns[i], errs[i] = net.DialTimeout("tcp", addr, 10*time.Second)
		})
	}
	all.Wait()
	for i, c := range conns {
		if errs[i] == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			all.Go(func() {
				buf := []byte("hello")
				_, errs[i] = c.Write(buf)
				if errs[i] == nil {
					_, errs[i] = io.ReadFull(c, buf)
				}
			})
		}
	}
	all.Wait()
	var errno syscall.Errno
	if err := errors.Join(errs...); errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	} else if err != nil {
		return strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return "ok"
}

// cgroup2Dir makes a cgroup2 directory for the test.
func cgroup2Dir(t *testing.T) *os.File {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(root, "psi-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			eventually(t, "the cgroup is removed", func() bool { return os.Remove(dir) == nil })
		})
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	t.Fatal("no cgroup2 is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return nil
}

// startGuest starts the test binary again, in a user namespace, a network namespace
// and a cgroup of its own.
func startGuest(t *testing.T, cgroup *os.File) (netns *os.File, ask func(string) string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1879048192, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET, // the network namespace is the user namespace's
		UidMappings: ids, GidMappings: ids,
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Pdeathsig: syscall.SIGKILL,
	}
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
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the guest ended with %v", err)
		}
	})
	netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	lines := bufio.NewScanner(out)
	return netns, func(what string) string {
		fmt.Fprintln(in, what)
		if !lines.Scan() {
			t.Fatalf("the guest says nothing to %q: %v", what, lines.Err())
		}
		return lines.Text()
	}
}

// The proxy and the eBPF programs hold one policy together, for a real process.
func TestBothWalls(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: CAP_SYS_ADMIN, CAP_BPF and a cgroup of its own")
	}
	watchLeaks(t)
	addr := server(t, "127.0.0.1:0", echo)
	port := addrPort(addr).Port()
	eps := endpoints(t, addr, "10.0.0.0/8:80", "[fd00::/8]:80", "api.example:443")
	names := make(map[string][]netip.Addr)
	for name, a := range Names(eps) {
		names[name] = []netip.Addr{a}
	}
	cgroup := cgroup2Dir(t)
	netns, ask := startGuest(t, cgroup)
	g, err := enforce.Attach(cgroup.Name(), eps, names)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	p, err := Open(netns, eps, Options{
		Resolve: fakeDNS{"api.example": {"8.8.8.8"}}.resolve,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for dest, want := range map[string]string{
		addr:                         "ok",
		fmt.Sprintf("1000 %s", addr): "ok",
		"10.3.2.1:80":                "ok",
		"[::ffff:10.3.2.1]:80":       "ok",
		"[fd00::1]:80":               "ok",
		names["api.example"][0].String() + ":443": "ok",
		names["api.example"][0].String() + ":80":  "EPERM",
		fmt.Sprintf("127.0.0.1:%d", port+1):       "EPERM",
		fmt.Sprintf("127.0.0.2:%d", port):         "EPERM",
		fmt.Sprintf("[::1]:%d", port):             "EPERM",
		"0.0.0.0:80":                              "EPERM",
		"127.0.0.1:80":                            "EPERM",
		"8.8.8.8:443":                             "EPERM",
		"10.0.0.1:81":                             "EPERM",
	} {
		if got := ask(dest); got != want {
			t.Errorf("%s: %s, want %s", dest, got, want)
		}
	}
	if n, err := g.Denied(); n != 8 || err != nil {
		t.Errorf("%d denials, want 8 (%v)", n, err)
	}
	if s := p.Stats(); s.Accepted != 1005 || len(s.Refused) != 0 {
		t.Errorf("%+v", s)
	}
	if err := errors.Join(g.Update(nil, nil), p.Update(nil)); err != nil {
		t.Fatal(err)
	}
	if got := ask(addr); got != "EPERM" {
		t.Errorf("after the update: %s, want EPERM", got)
	}
}
