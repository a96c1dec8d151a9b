package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// engineBundle is what an engine makes of an image, asked for as much as there is: root
// on the host, every capability, nothing masked, a writable cgroup file system, a device.
// VOLUME in the policy is the directory that it mounts.
func engineBundle(t *testing.T, policy string, change ...func(config)) string {
	t.Helper()
	source, err := os.ReadFile("testdata/engine.py")
	if err != nil {
		t.Fatal(err)
	}
	volume, bundle := filepath.Join(publicDir(t), "volume"), publicDir(t)
	write(t, filepath.Join(volume, "public/f"), "public", 0o644)
	write(t, filepath.Join(volume, "secret"), "secret", 0o644)
	if err := os.Symlink("../secret", filepath.Join(volume, "public/link")); err != nil {
		t.Fatal(err)
	}
	door, err := net.Listen("unix", filepath.Join(volume, "public/socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { door.Close() })
	fifo := filepath.Join(volume, "public/fifo")
	if err := errors.Join(os.Chmod(door.Addr().String(), 0o666), syscall.Mkfifo(fifo, 0o666), os.Chmod(fifo, 0o666)); err != nil {
		t.Fatal(err)
	}
	every := []string{}
	for _, name := range strings.Fields("CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW NET_ADMIN SYS_ADMIN SYS_PTRACE SYS_CHROOT SYS_MODULE SYS_RAWIO SYS_BOOT MKNOD BPF PERFMON BLOCK_SUSPEND") {
		every = append(every, "CAP_"+name)
	}
	mount := func(dest, kind, source string, options ...string) config {
		return config{"destination": dest, "type": kind, "source": source, "options": options}
	}
	c := config{
		"ociVersion": "1.0.2",
		"root":       config{"path": rootfs(t), "readonly": true},
		"process": config{
			"args": []string{"/usr/bin/python3.11", "-I", "-c", string(source)}, "cwd": "/", "env": []string{"PATH=/usr/bin"},
			"capabilities": config{"bounding": every, "effective": every, "permitted": every, "inheritable": every, "ambient": every},
			"rlimits":      []config{{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}},
		},
		"mounts": []config{
			mount("/proc", "proc", "proc"), mount("/dev", "tmpfs", "tmpfs", "mode=755"), mount("/tmp", "tmpfs", "tmpfs", "size=1g"),
			mount("/sys", "sysfs", "sysfs", "rw"), mount("/sys/fs/cgroup", "cgroup", "cgroup", "rw"),
			mount("/srv/volume", "bind", volume, "rbind", "rw"),
		},
		"linux": config{
			"namespaces":    []config{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "network"}},
			"resources":     config{"devices": []config{{"allow": true, "access": "rwm"}}, "memory": config{"limit": 1 << 40}, "pids": config{"limit": 100000}},
			"maskedPaths":   []string{},
			"readonlyPaths": []string{},
			"devices":       []config{{"path": "/dev/evil", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}},
		},
		"annotations": config{"io.psi.policy": strings.ReplaceAll(policy, "VOLUME", volume), "io.psi.enforced": "[]", "io.psi.confine": "{}"},
	}
	for _, f := range change {
		f(c)
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bundle, "config.json"), string(data), 0o644)
	return bundle
}

const enginePolicy = `{mem: 128MiB, pids: 20, open_files: 100, tcp: ["127.0.0.2:9200"], fs: [{read: /srv/volume/public}, {read: VOLUME}, {deny: /etc/passwd}]%s}`

// stopped says what came of each attempt; refused, because nothing listens there, is
// what the allowed endpoint gives.
var stopped = map[string][]string{
	"allowed": {"ECONNREFUSED", "ENETUNREACH"}, "kcore": {"masked", "ENOENT"}, "privileges": {"no_new_privs"}, "capabilities": {"none that matters"},
	"descriptors": {"none"}, "volume-public": {"readable"}, "denied-file": {"masked"},
	"clone3": {"ENOSYS"}, "processes": {"EAGAIN"}, "cgroup": {"EROFS", "ENOENT", "EACCES", "EPERM"},
	"volume-secret": {"EACCES"}, "volume-link": {"EACCES"}, "volume-dotdot": {"EACCES"}, "volume-proc": {"EACCES"}, "volume-write": {"EROFS", "EACCES"},
	"volume-socket": {"ECONNREFUSED", "EACCES"}, "volume-fifo": {"masked", "EACCES"},
	"core-pattern": {"EROFS", "EACCES", "ENOENT"}, "sysrq": {"EROFS", "EACCES", "ENOENT"}, "device": {"ENOENT", "EPERM"},
	"pins": {"ENOENT", "EACCES"},
}

func checkStopped(t *testing.T, got result, but map[string][]string) {
	t.Helper()
	lines := 0
	for line := range strings.Lines(got.stdout) {
		name, verdict, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "kcore-bytes" {
			if verdict != "0" {
				t.Errorf("/proc/kcore can be read")
			}
			continue
		}
		lines++
		want, ok := but[name]
		if !ok {
			want, ok = stopped[name]
		}
		if !ok {
			want = []string{"EPERM"}
		}
		if !slices.Contains(want, verdict) {
			t.Errorf("%s: %s, want %q", name, verdict, want)
		}
	}
	if got.code != 0 || lines != 48 {
		t.Errorf("exit code %d, %d attempts:\n%s%s", got.code, lines, got.stdout, got.stderr)
	}
}

// CPython's list answers ENOSYS to what it does not name, and has no netlink.
var stoppedByPython = map[string][]string{"volume-socket": {"EPERM"}, "keyctl": {"EPERM", "ENOSYS"}, "handle": {"EPERM", "ENOSYS"}, "perf": {"ENOSYS"}, "open-tree": {"EPERM", "ENOSYS"}}

func TestEngineContainerStaysInItsPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		more   string
		change func(config)
		but    map[string][]string
	}{
		"no filter of the engine": {"", func(config) {}, nil},
		"a filter that allows all": {"", func(c config) {
			c.at("linux")["seccomp"] = config{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []config{{"names": []string{"reboot"}, "action": "SCMP_ACT_ERRNO"}}}
		}, nil},
		"seccomp python": {", seccomp: python", func(config) {}, stoppedByPython},
	} {
		t.Run(name, func(t *testing.T) {
			watched(t)
			bundle := engineBundle(t, fmt.Sprintf(enginePolicy, tc.more), func(c config) {
				if l, ok := c["linux"].(config); ok {
					wrapped := config{"linux": map[string]any(l)}
					tc.change(wrapped)
				}
			})
			checkStopped(t, run(t, bundle), tc.but)
		})
	}
}

// The attempts are real: without a policy they succeed. Those that would change the host
// are left out.
func TestEngineAttemptsWorkWithoutPolicy(t *testing.T) {
	watched(t)
	names := []string{"udp", "raw", "packet", "bind", "mount", "bpf", "keyctl", "processes", "new-user", "new-net",
		"privileges", "capabilities", "volume-secret", "volume-link", "volume-write", "volume-dotdot", "volume-proc", "volume-socket", "volume-fifo", "denied-file"}
	got := run(t, engineBundle(t, "", func(c config) {
		delete(c["annotations"].(config), "io.psi.policy")
		process := c["process"].(config)
		process["args"] = append(process["args"].([]string), append([]string{"other-port"}, names...)...)
		process["rlimits"] = []config{}
	}))
	for _, name := range names {
		if !strings.Contains(got.stdout, name+" open\n") {
			t.Errorf("%s fails without a policy too", name)
		}
	}
	if !strings.Contains(got.stdout, "other-port ECONNREFUSED\n") && !strings.Contains(got.stdout, "other-port ENETUNREACH\n") {
		t.Error("connecting")
	}
	if t.Failed() {
		t.Logf("%s%s", got.stdout, got.stderr)
	}
}

// A process that joins later, with all that exec can be asked for, is held the same way.
func TestEngineExecStaysInThePolicy(t *testing.T) {
	watched(t)
	bundle := engineBundle(t, fmt.Sprintf(enginePolicy, ""), func(c config) {
		process := c["process"].(config)
		process["args"] = []string{"/usr/bin/python3.11", "-I", "-c", "import time; time.sleep(600)"}
	})
	id := detach(t, bundle)
	source, err := os.ReadFile("testdata/engine.py")
	if err != nil {
		t.Fatal(err)
	}
	got := invoke(t, program(t), "exec", "--cap", "CAP_SYS_ADMIN", "--cap", "CAP_NET_RAW", "--cap", "CAP_SYS_CHROOT", id, "/usr/bin/python3.11", "-I", "-c", string(source))
	checkStopped(t, got, nil)

	// update cannot widen what the policy lowered.
	for _, flags := range [][]string{{"--memory", "4G"}, {"--memory", "-1"}, {"--pids-limit", "1000"}, {"--pids-limit", "-1"}} {
		if got := invoke(t, program(t), append(append([]string{"update"}, flags...), id)...); got.code != 0 {
			t.Errorf("update %v: %+v", flags, got)
		}
	}
	got = invoke(t, program(t), "exec", id, "/usr/bin/python3.11", "-I", "-c", string(source), "processes")
	if got.stdout != "processes EAGAIN\n" {
		t.Errorf("after update: %+v", got)
	}
	got = invoke(t, program(t), "exec", id, "/usr/bin/python3.11", "-I", "-c", "x = bytearray(300 << 20)")
	if got.code != 137 && got.code != 255 {
		t.Errorf("more memory than the policy has: %+v", got)
	}
}

// detach starts a container that outlives the command, and returns its id.
func detach(t *testing.T, bundle string) string {
	t.Helper()
	id := newID()
	t.Cleanup(func() { exec.Command(program(t), "delete", "--force", id).Run() })
	cmd := exec.Command(program(t), "run", "--detach", "--bundle", bundle, id) // without pipes, which it would keep open
	if err := cmd.Run(); err != nil {
		t.Fatalf("starting the container: %v: %s", err, invoke(t, program(t), "run", "--bundle", bundle, newID()).stderr)
	}
	return id
}

// In a network that an engine made, what the policy allows is reached directly: nothing
// stands between, and what it does not allow is refused although it is there.
func TestEngineNetworkIsFiltered(t *testing.T) {
	watched(t)
	network := exec.Command("/usr/bin/python3.11", "-I", "-c", `
import fcntl, socket, struct, time
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))  # up
control.close()
listeners = [socket.create_server(("127.0.0.2", port)) for port in (9200, 9201)]
print("up", flush=True)
time.sleep(600)`)
	network.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := network.StdoutPipe()
	if err == nil {
		err = network.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		network.Process.Kill()
		network.Wait()
	})
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	bundle := engineBundle(t, fmt.Sprintf(enginePolicy, ""), func(c config) {
		c["linux"].(config)["namespaces"] = []config{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"},
			{"type": "network", "path": fmt.Sprintf("/proc/%d/ns/net", network.Process.Pid)}}
		process := c["process"].(config)
		process["args"] = append(process["args"].([]string), "allowed", "other-port", "other-address", "mapped", "udp", "bind")
	})
	want := "allowed open\nother-port EPERM\nother-address EPERM\nmapped EPERM\nudp EPERM\nbind EPERM\n"
	if got := run(t, bundle); got.code != 0 || got.stdout != want {
		t.Errorf("exit %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

// What an engine can be asked for beside the policy does not start a container with less of it.
func TestEngineBundleIsRefused(t *testing.T) {
	watched(t)
	annotate := func(key, value string) func(config) {
		return func(c config) { c["annotations"].(config)[key] = value }
	}
	volume := func(source, dest string) func(config) {
		return func(c config) {
			c["mounts"] = append(c["mounts"].([]config), config{"destination": dest, "type": "bind", "source": source, "options": []string{"rbind"}})
		}
	}
	socket := filepath.Join(publicDir(t), "hosts")
	if err := syscall.Mkfifo(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	link, secret := filepath.Join(publicDir(t), "hosts"), filepath.Join(publicDir(t), "secret")
	write(t, secret, "secret", 0o600)
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		policy string
		change func(config)
		want   string
	}{
		"garbage":         {"\x01\x02", func(config) {}, "io.psi.policy"},
		"huge":            {"{mem: 64MiB}" + strings.Repeat("\n", 2<<20), func(config) {}, "io.psi.policy"},
		"unknown name":    {"no-such-policy", func(config) {}, "no-such-policy"},
		"a path":          {"../../../tmp/policy", func(config) {}, "io.psi.policy"},
		"duplicate key":   {`{"mem": "64MiB", "mem": "4GiB"}`, func(config) {}, "mem"},
		"own ids":         {fmt.Sprintf(enginePolicy, ""), annotate("io.psi.ids", "auto"), "io.psi.ids"},
		"odd ids":         {fmt.Sprintf(enginePolicy, ""), annotate("io.psi.ids", "1"), "io.psi.ids"},
		"another volume":  {fmt.Sprintf(enginePolicy, ""), volume("/usr/share/common-licenses", "/data"), "/data"},
		"elsewhere":       {`fs: [{read: /srv/volume}]`, func(config) {}, "no fs rule allows"},
		"the host":        {`fs: [{read: /srv/volume}, {read: VOLUME}, {read: /data}]`, volume("/", "/data"), "whole host"},
		"a FIFO as hosts": {fmt.Sprintf(enginePolicy, ""), volume(socket, "/etc/hosts"), "FIFO"},
		"a link as hosts": {fmt.Sprintf(enginePolicy, ""), volume(link, "/etc/hosts"), secret},
		"host network": {fmt.Sprintf(enginePolicy, ""), func(c config) {
			c["linux"].(config)["namespaces"] = []config{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}}
		}, "network namespace"},
		"a name": {`{tcp: ["db.example:1"], fs: [{read: /srv/volume}, {read: VOLUME}]}`, func(config) {}, "db.example:1"},
	} {
		got := run(t, engineBundle(t, tc.policy, tc.change))
		if got.code != 1 || !strings.Contains(got.stderr, tc.want) || strings.Contains(got.stdout, "allowed") {
			t.Errorf("%s: exit %d, %.500q", name, got.code, got.stderr)
		}
	}
	// The annotation twice: a reader that takes the first and one that takes the last would differ.
	bundle := engineBundle(t, "defaults")
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, strings.Replace(string(data), `"annotations":{`, `"annotations":{"io.psi.policy":"{mem: 4GiB}",`, 1), 0o644)
	if got := run(t, bundle); got.code != 1 || !strings.Contains(got.stderr, "twice") {
		t.Errorf("the annotation twice: %+v", got)
	}
}
