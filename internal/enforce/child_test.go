package enforce_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The guest of these tests is this test binary again, in a network namespace of
// its own and in the cgroup under test. It does what it is asked to, one JSON
// request a line, and answers with the errno of the first system call that failed.

type request struct {
	Op   string
	Net  string // tcp4, tcp6, udp4, udp6, raw4, sctp4, mptcp4, …
	Addr string
	For  time.Duration // storm, compute
}

type reply struct {
	Errno  syscall.Errno
	Call   string // which failed
	Counts map[string]int
}

const childEnv = "PSI_ENFORCE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "guest":
		os.Exit(childMain())
	case "attach":
		os.Exit(attachMain())
	case "load":
		os.Exit(loadMain())
	case "attach-files":
		os.Exit(attachFilesMain())
	}
}

func childMain() int {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	early := make(map[string]int)
	for {
		var req request
		if err := in.Decode(&req); err != nil {
			return 0
		}
		if err := out.Encode(serve(req, early)); err != nil {
			return 1
		}
	}
}

func serve(req request, early map[string]int) reply {
	if answer, mine := serveFile(req); mine {
		return answer
	}
	if answer, mine := servePair(req); mine {
		return answer
	}
	switch req.Op {
	case "setup":
		return setup()
	case "early": // a socket from before the policy
		fd, err := socket(req.Net)
		early[req.Net] = fd
		return failed("socket", err)
	case "storm":
		return storm(req)
	case "compute":
		for end := time.Now().Add(req.For); time.Now().Before(end); {
		}
		return reply{}
	}
	fd, ok := early[req.Net]
	if !ok {
		var err error
		if fd, err = socket(req.Net); err != nil {
			return failed("socket", err)
		}
		defer unix.Close(fd)
	}
	dest := sockaddr(req.Net, req.Addr)
	switch req.Op {
	case "bind":
		return failed("bind", unix.Bind(fd, dest))
	case "sendto":
		return failed("sendto", unix.Sendto(fd, []byte("x"), 0, dest))
	case "fastopen":
		return failed("sendto", unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, dest))
	}
	return failed("connect", unix.Connect(fd, dest))
}

func failed(call string, err error) reply {
	var errno syscall.Errno
	if err == nil {
		return reply{}
	}
	if !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	return reply{Errno: errno, Call: call}
}

// setup makes a network in which 10.0.0.0/8 and fd00::/8 are local, with
// listeners at ports 80 and 81 of everything.
func setup() reply {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return failed("lo", err)
	}
	errs := []error{
		netlink.LinkSetUp(lo),
		os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0), // ping sockets for all
	}
	for _, block := range []string{"10.0.0.0/8", "8.8.8.8/32", "fd00::/8"} {
		_, dst, _ := net.ParseCIDR(block)
		errs = append(errs, netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		}))
	}
	for _, port := range []string{"80", "81"} {
		l, err := net.Listen("tcp", ":"+port)
		errs = append(errs, err)
		if err != nil {
			continue
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return failed("setup", err)
	}
	return reply{}
}

func socket(network string) (int, error) {
	family, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, 0
	if strings.HasSuffix(network, "6") {
		family = unix.AF_INET6
	}
	switch network[:len(network)-1] {
	case "udp":
		kind = unix.SOCK_DGRAM
	case "ping":
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_ICMP
	case "raw":
		kind, protocol = unix.SOCK_RAW, unix.IPPROTO_ICMP
	case "sctp":
		protocol = unix.IPPROTO_SCTP
	case "mptcp":
		protocol = unix.IPPROTO_MPTCP
	case "udplite":
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE
	}
	return unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
}

func sockaddr(network, addr string) unix.Sockaddr {
	ap := netip.MustParseAddrPort(addr)
	if strings.HasSuffix(network, "6") {
		return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
}

// storm connects from four threads as fast as it can, and counts the outcomes.
func storm(req request) reply {
	counts := make(map[string]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(req.For)
	for range 4 {
		wg.Go(func() {
			own := make(map[string]int)
			for time.Now().Before(end) {
				own[connectOnce(req).Errno.Error()]++
			}
			mu.Lock()
			defer mu.Unlock()
			for k, n := range own {
				counts[k] += n
			}
		})
	}
	wg.Wait()
	return reply{Counts: counts}
}

func connectOnce(req request) reply {
	fd, err := socket(req.Net)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	// A reset instead of TIME_WAIT, or the ports run out.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return failed("connect", unix.Connect(fd, sockaddr(req.Net, req.Addr)))
}

// child is the parent's end.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	end func() // waits for it to end, once
}

func startChild(t testing.TB, cgroup string) *child {
	t.Helper()
	c := startChildIn(t, cgroup, "/proc/self/exe", unix.CLONE_NEWNET)
	if r := c.do(request{Op: "setup"}); r.Errno != 0 {
		t.Fatalf("setting the child's network up: %s: %v", r.Call, r.Errno)
	}
	return c
}

// startChildIn starts this program, found at path, in a cgroup and new namespaces.
func startChildIn(t testing.TB, cgroup, path string, namespaces uintptr, files ...*os.File) *child {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), childEnv+"=guest")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: namespaces, UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL,
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the child ended with %v", err)
		}
	})
	t.Cleanup(end)
	return &child{t, cmd, json.NewEncoder(stdin), json.NewDecoder(stdout), end}
}

func (c *child) send(req request) {
	c.t.Helper()
	if err := c.in.Encode(req); err != nil {
		c.t.Fatalf("asking the child: %v", err)
	}
}

func (c *child) receive() reply {
	c.t.Helper()
	var r reply
	if err := c.out.Decode(&r); err != nil {
		c.t.Fatalf("hearing from the child: %v", err)
	}
	return r
}

func (c *child) do(req request) reply {
	c.t.Helper()
	c.send(req)
	return c.receive()
}

// expect checks one system call of the child; want "" means that it succeeds.
func (c *child) expect(op, network, addr, wantCall string, want syscall.Errno) {
	c.t.Helper()
	r := c.do(request{Op: op, Net: network, Addr: addr})
	if r.Errno != want || r.Call != wantCall {
		c.t.Errorf("%s %s %s: %q %v, want %q %v", op, network, addr, r.Call, r.Errno, wantCall, want)
	}
}

// newCgroup makes a cgroup2 directory, removed at the end of the test.
func newCgroup(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: CAP_BPF, CAP_NET_ADMIN and a cgroup of its own")
	}
	dir, err := os.MkdirTemp(cgroup2Root(t), "psi-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	return dir
}

func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	children, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, c := range children {
		removeCgroup(t, filepath.Dir(c))
	}
	for range 100 { // processes that ended may still be on their way out
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("cgroup %s cannot be removed", dir)
}

func cgroup2Root(t testing.TB) string {
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Fatal("no cgroup2 is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return ""
}
