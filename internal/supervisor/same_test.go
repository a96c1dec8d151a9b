package supervisor

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/channel"
)

// How a guest came to be, it must not be able to tell: by libcontainer, by a zygote, or by
// either and then from the pool. Here guests of all origins look at themselves, for every
// policy, and what they see is compared.

// portrait is what a guest posts of itself: lines of JSON, one for each thing.
const portrait = `
import json, os, sys
def lines(path):
    with open(path, errors="surrogateescape") as f: return f.read().splitlines()
seen = {}
# numbers of mounts, of file systems and of their peers differ from guest to guest
seen["mounts"] = sorted(" ".join(l.split()[3:6] + l.split(" - ")[1].split()) for l in lines("/proc/self/mountinfo"))
status = dict(l.split(":", 1) for l in lines("/proc/1/status"))
seen["status"] = {k: v.split() for k, v in status.items() if k in (
    "Name", "Umask", "Tgid", "Pid", "PPid", "TracerPid", "Uid", "Gid", "FDSize", "Groups", "NStgid", "NSpid", "NSpgid", "NSsid", "Threads",
    "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
    "Speculation_Store_Bypass", "Cpus_allowed_list", "Mems_allowed_list")}
seen["limits"] = lines("/proc/1/limits")
seen["cgroup"] = [l.split(":", 2)[1:] for l in lines("/proc/1/cgroup")]
seen["maps"] = [lines("/proc/1/uid_map"), lines("/proc/1/gid_map")]
seen["environ"] = [sorted(lines("/proc/1/environ")[0].split("\0")), dict(os.environ)]
seen["program"] = [lines("/proc/1/cmdline"), os.readlink("/proc/1/exe"), os.readlink("/proc/1/cwd"), os.readlink("/proc/1/root"), lines("/proc/1/comm")]
seen["fds"] = {n: os.readlink("/proc/self/fd/" + n).split(":")[0] for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)}
seen["names"] = [list(os.uname())[:2], lines("/etc/hosts"), lines("/etc/resolv.conf") if os.path.exists("/etc/resolv.conf") else None]
seen["slack"] = lines("/proc/1/timerslack_ns")
seen["oom"] = [lines("/proc/1/oom_score_adj"), lines("/proc/1/oom_adj")]
seen["ids"] = [os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), os.getresuid(), os.getresgid(), os.getgroups()]
def sockets(line): # without the ports that the kernel chose, for ranges
    where, other, state = line.split()[1:4]
    address, port = where.split(":")
    return [address, port if int(port, 16) < 32768 else "any", other, state]
seen["net"] = [lines("/proc/net/dev")[2].split()[0], len(lines("/proc/net/dev")), sorted(lines("/proc/net/route")),
    [lines("/proc/sys/net/ipv4/" + n) for n in ("tcp_rmem", "tcp_wmem", "tcp_congestion_control")],
    [sorted(lines("/proc/net/" + n)) for n in ("fib_trie", "if_inet6", "ipv6_route", "igmp", "igmp6")],
    [sorted(map(sockets, lines("/proc/net/" + n)[1:])) for n in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")], len(lines("/proc/net/unix"))]
def entry(path):
    st = os.lstat(path)
    return [path, oct(st.st_mode), st.st_uid, st.st_gid, os.readlink(path) if os.path.islink(path) else st.st_rdev]
def size(path):
    st = os.statvfs(path)
    return [path, st.f_blocks * st.f_frsize, st.f_flag]
seen["files"] = [entry(d + "/" + n) for d in ("", "/dev", "/tmp", "/etc", "/usr/lib/psi", "/srv", "/proc/sys/kernel") if os.path.isdir(d or "/") for n in sorted(os.listdir(d or "/"))]
seen["sizes"] = [size(p) for p in ("/", "/dev", "/dev/shm", "/tmp", "/proc")]
seen["modules"] = sorted(sys.modules)
seen["path"] = [sys.path, sys.argv, sys.flags, sys.executable, sys.prefix]
seen["namespaces"] = sorted(os.listdir("/proc/1/ns"))
for name, value in seen.items(): post(json.dumps([name, value], default=str))
`

// hostNumbers are ids of psi's range, and the descriptors that overlays were made of.
var hostNumbers = regexp.MustCompile(`\b18[78][0-9]{7}\b|/proc/self/fd/[0-9]+`)

// look has a guest draw its portrait.
func look(t *testing.T, g *testGuest) map[string]string {
	t.Helper()
	lines, err := g.exec(portrait)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, line := range lines {
		var pair [2]json.RawMessage
		if err := json.Unmarshal([]byte(line), &pair); err != nil {
			t.Fatal(err)
		}
		out[string(pair[0])] = hostNumbers.ReplaceAllString(strings.ReplaceAll(string(pair[1]), g.id, "ID"), "N")
	}
	out["devices"] = deviceRules(t, g)
	return out
}

// deviceRules are those of the guest's v1 cgroup; "" where devices are no controller of v1.
func deviceRules(t *testing.T, g *testGuest) string {
	t.Helper()
	groups, err := os.ReadFile("/proc/" + pidsOf(g.id)[0] + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, dir, found := strings.Cut(string(groups), ":devices:")
	if !found {
		return ""
	}
	dir, _, _ = strings.Cut(dir, "\n")
	rules, err := os.ReadFile("/sys/fs/cgroup/devices" + dir + "/devices.list")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(strings.ReplaceAll(string(rules), " ", "-"))
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// withZygote returns when the supervisor has a zygote, with what is in its run directory when
// no guest is.
func withZygote(t *testing.T, s *shim, c *testClient) []string {
	t.Helper()
	c.hello(t)
	c.end(t, c.forked(t, s, nil))
	for range 2000 {
		if all := guestsIn(s.runDir); len(all) == 3 { // its journal, its root, its id
			return all
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("left: %v\n%s", guestsIn(s.runDir), s.log)
	return nil
}

// count is how many requests there were.
func (c *testClient) count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nextID
}

func (c *testClient) end(t *testing.T, g *testGuest) {
	t.Helper()
	c.must(t, map[string]any{"op": "close", "guest": g.id, "timeout": 1})
}

// forked makes a guest by a zygote: until there is one guests are made by libcontainer.
func (c *testClient) forked(t *testing.T, s *shim, policy map[string]any) *testGuest {
	t.Helper()
	for i := range 200 {
		g := c.spawn(t, fmt.Sprintf("forked-%d-%d", c.count(), i), policy)
		if isForked(t, g) {
			return g
		}
		c.end(t, g)
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no guest was forked by a zygote\n%s", s.log)
	return nil
}

// isForked tells by the owner of the guest's user namespace, which is who made it: root, or
// the user of a zygote.
func isForked(t *testing.T, g *testGuest) bool {
	t.Helper()
	pids := pidsOf(g.id)
	if len(pids) == 0 {
		t.Fatalf("guest %s has no process", g.id)
	}
	ns, err := os.Open("/proc/" + pids[0] + "/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var owner uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, ns.Fd(), unix.NS_GET_OWNER_UID, uintptr(unsafe.Pointer(&owner))); errno != 0 {
		t.Fatal(errno)
	}
	return owner != 0
}

// pooled makes a guest that was waiting in the pool, by a zygote or not.
func (c *testClient) pooled(t *testing.T, s *shim, policy map[string]any, byZygote bool) *testGuest {
	t.Helper()
	for i := range 200 {
		time.Sleep(50 * time.Millisecond)
		ready := guestsIn(s.runDir)
		g := c.spawn(t, fmt.Sprintf("pooled-%d-%d", c.count(), i), policy)
		waited := slices.ContainsFunc(ready, func(path string) bool { return strings.HasPrefix(filepath.Base(path), g.id+"@") })
		if said, _ := g.reply["ready"].(map[string]any); waited && said["protocol"] != float64(channel.Protocol) {
			t.Errorf("of a guest that waited is said that it was ready: %v", g.reply["ready"])
		}
		if waited && isForked(t, g) == byZygote {
			return g
		}
		c.end(t, g)
	}
	t.Fatalf("no guest came from the pool\n%s", s.log)
	return nil
}

// samePolicies are those that differ in what is done to a blank.
func samePolicies(t *testing.T) map[string]map[string]any {
	shared, written := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "a.csv"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]map[string]any{
		"defaults": {}, "imports": {"imports": []string{"json", "os", "sys"}},
		"preload": {"imports": []string{"json", "os", "sys", "decimal"}, "preload": []string{"decimal"}}, "nothing to write": {"tmp": 0},
		"limits": {"mem": "64MiB", "cpu": 0.5, "pids": 20, "open_files": 64, "tmp": "1MiB", "message": "1MiB", "output": "2MiB"},
		"fs":     {"fs": []any{shared + "/*.csv", map[string]any{"write": written}}},
		"tcp":    {"tcp": []string{"127.0.0.1:9200"}}, "address": {"tcp": []string{"10.1.2.3:5432", "10.1.2.3:5433"}},
		"net": {"tcp": []string{"127.0.0.1:9200", "example.org:443", "*.example.com:80", "10.0.0.0/8:1-99"}, "udp": []string{"127.0.0.1:53"}},
	}
}

func TestGuestsOfAllOriginsAreTheSame(t *testing.T) {
	runDir := newRunDir(t)
	without, direct := embeddedWith(t, Config{RunDir: runDir})
	with, ahead := embeddedWith(t, Config{RunDir: runDir, Pool: PoolOptions{Size: 1, CPU: 4}})
	for name, policy := range samePolicies(t) {
		t.Run(name, func(t *testing.T) {
			fresh := map[string]any{"isolation": "fresh"}
			maps.Copy(fresh, policy)
			cold := look(t, direct.spawn(t, "cold-"+strings.ReplaceAll(name, " ", "-"), fresh))
			seen := map[string]map[string]string{
				"a zygote":                    look(t, direct.forked(t, without, policy)),
				"libcontainer, from the pool": look(t, ahead.pooled(t, with, fresh, false)),
				"a zygote, from the pool":     look(t, ahead.pooled(t, with, policy, true)),
			}
			for origin, other := range seen {
				for key, want := range cold {
					if got := other[key]; got != want {
						t.Errorf("%s of a guest made by %s is not as by libcontainer: %s", key, origin, firstDifference(got, want))
					}
				}
			}
		})
	}
}

func firstDifference(a, b string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("they differ at …%q and …%q", a[max(0, i-40):min(len(a), i+60)], b[max(0, i-40):min(len(b), i+60)])
		}
	}
	return "one is longer"
}

// zygotesOf lists the zygotes of a supervisor: children of its inner process that are agents
// and in no guest's cgroup.
func zygotesOf(t *testing.T, s *shim) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		command, _ := os.ReadFile(dir + "/cmdline")
		groups, _ := os.ReadFile(dir + "/cgroup")
		environ, _ := os.ReadFile(dir + "/status")
		if strings.Contains(string(command), "agent.pyc") && !strings.Contains(string(groups), "/psi-") && strings.Contains(string(environ), fmt.Sprintf("PPid:\t%d\n", innerOf(t, s))) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

func innerOf(t *testing.T, s *shim) int {
	t.Helper()
	pid := s.cmd.Process.Pid
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	inner, err := strconv.Atoi(strings.Fields(string(data))[0])
	if err != nil {
		t.Fatal(err)
	}
	return inner
}

// A zygote that dies takes nothing with it: its guests go on, and the next are made without
// it, and then by another.
func TestZygoteDies(t *testing.T) {
	s, c := embedded(t)
	before := c.forked(t, s, nil)
	zygotes := zygotesOf(t, s)
	if len(zygotes) != 1 {
		t.Fatalf("zygotes: %v", zygotes)
	}
	if err := unix.Kill(zygotes[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := before.run(t, "post(1 + 1)"); got != "2" {
		t.Errorf("posted %s", got)
	}
	for i := range 100 {
		g := c.spawn(t, fmt.Sprintf("after-%d", i), nil)
		if got := g.run(t, "post(3)"); got != "3" {
			t.Errorf("posted %s", got)
		}
		again := isForked(t, g)
		c.end(t, g)
		if again {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("no other zygote took over")
}
