package container

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests here try what the features document says. What no machine of the tests has, AppArmor,
// SELinux, Intel RDT and an RDMA device, is refused by name; systemd is tried by cmd/psi-runtime, and
// idmapped mounts by TestClientFiles.

// attempt runs a container to its end, and says why it could not be made.
func (f *fixture) attempt(s *specs.Spec) (string, int) {
	f.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	o := f.options(s)
	o.Stdout, o.Stderr = w, w
	c, err := Create(context.Background(), o)
	w.Close()
	if err != nil {
		return err.Error(), -1
	}
	defer c.Delete(true)
	if err := c.Start(); err != nil {
		return err.Error(), -1
	}
	text, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	status, err := c.Wait()
	if err != nil {
		f.t.Fatal(err)
	}
	return string(text), status.Code
}

func TestFeaturesHooks(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo ran >" + filepath.Join(dir, name)}}}
	}
	s := plainSpec("true")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: dir, Source: dir, Type: "bind", Options: []string{"bind"}}) // startContainer's is the container's
	s.Hooks = &specs.Hooks{
		Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"),
		StartContainer: hook("startContainer"), Poststart: hook("poststart"), Poststop: hook("poststop"),
	}
	c, err := Create(context.Background(), f.options(s))
	if err == nil {
		err = c.Start()
	}
	if err == nil {
		_, err = c.Wait()
	}
	if err == nil {
		err = c.Delete(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Features().Hooks {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("the hook %s: %v", name, err)
		}
	}
}

// shown is what mountinfo says of an option, where that is not the option itself. Those with ""
// are the absence of another one, or nothing that it shows.
var shown = map[string]string{
	"async": "", "atime": "", "bind": "", "defaults": "", "dev": "", "diratime": "", "exec": "", "loud": "", "noiversion": "", "nolazytime": "",
	"nomand": "", "norelatime": "", "nostrictatime": "", "rbind": "", "rdev": "", "rdiratime": "", "rexec": "", "rrw": "rw", "rsuid": "", "rsymfollow": "",
	"silent": "", "strictatime": "", "suid": "", "symfollow": "", "ratime": "", "rstrictatime": "", "rnorelatime": "", "rnostrictatime": "", "private": "", "rprivate": "",
	"iversion": "", "mand": "", "tmpcopyup": "",
	"rnoatime": "noatime", "rnodev": "nodev", "rnodiratime": "nodiratime", "rnoexec": "noexec", "rnosuid": "nosuid", "rnosymfollow": "nosymfollow",
	"rrelatime": "relatime", "rro": "ro",
	"shared": "shared:", "rshared": "shared:", "slave": "master:", "rslave": "master:", "unbindable": "unbindable", "runbindable": "unbindable",
}

// Every mount option is taken for what it is, and not handed to the file system, which would refuse it.
func TestFeaturesMountOptions(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil { // what is to be a slave has a master
		t.Fatal(err)
	}
	// One container for each kind of mount: on the second kernel one takes seconds.
	for kind, other := range map[string][]string{
		"tmpfs": {"bind", "rbind", "slave", "rslave"},
		"bind":  {"tmpcopyup", "dirsync", "lazytime", "sync"}, // the file system's
	} {
		s := plainSpec("while read line; do echo $line; done </proc/self/mountinfo")
		var tried []string
		for _, option := range Features().MountOptions {
			// The specification's example has no mount that is there already.
			if option == "remount" || slices.Contains(other, option) {
				continue
			}
			m := specs.Mount{Destination: "/tmp/" + option, Type: kind, Source: "tmpfs", Options: []string{option}}
			if kind == "bind" {
				m.Source, m.Options = dir, []string{"rbind", option}
			}
			s.Mounts = append(s.Mounts, m)
			tried = append(tried, option)
		}
		said, status := f.attempt(s)
		if status != 0 {
			t.Errorf("mounts of kind %s: exit code %d, %s", kind, status, said)
			continue
		}
		for _, option := range tried {
			_, line, _ := strings.Cut(said, " /tmp/"+option+" ")
			line, _, _ = strings.Cut(line, "\n")
			want, different := shown[option]
			if !different {
				want = option
			}
			fields := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ',' })
			if line == "" || want != "" && !slices.ContainsFunc(fields, func(field string) bool { return strings.HasPrefix(field, want) }) {
				t.Errorf("a mount of kind %s with %s is %q, want %q", kind, option, line, want)
			}
		}
	}
}

func TestFeaturesNamespaces(t *testing.T) {
	f := newFixture(t)
	s := autoSpec("for n in cgroup ipc mnt net pid time user uts; do ls -l /proc/self/ns/$n; done")
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	said, _ := f.attempt(s)
	files := map[string]string{"mount": "mnt", "network": "net"}
	for _, name := range Features().Linux.Namespaces {
		if file, ok := files[name]; ok {
			name = file
		}
		own, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said, " "+name+":[") && !strings.Contains(said, " -> "+name+":[") || strings.Contains(said, own) {
			t.Errorf("the namespace %s is ours, %s, or none:\n%s", name, own, said)
		}
	}
}

func TestFeaturesCapabilities(t *testing.T) {
	f := newFixture(t)
	for _, step := range []int{1, 2, 3} { // every one, every second, every third
		var names []string
		var mask uint64
		for number, name := range Features().Linux.Capabilities {
			has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(number), 0, 0, 0)
			if err != nil || has != 1 || number%step != 0 {
				continue // not ours to give
			}
			names, mask = append(names, name), mask|1<<number
		}
		s := plainSpec("while read name value; do case $name in CapEff:) echo $value; esac; done </proc/self/status")
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
		if said, status := f.attempt(s); strings.TrimSpace(said) != fmt.Sprintf("%016x", mask) {
			t.Errorf("a process with %v has %q, want %016x (exit code %d)", names, said, mask, status)
		}
	}
}

func TestFeaturesMemoryPolicy(t *testing.T) {
	f := newFixture(t)
	said := map[specs.MemoryPolicyModeType]string{
		specs.MpolBind: "bind:0", specs.MpolPreferred: "prefer:0", specs.MpolInterleave: "interleave:0", specs.MpolLocal: "local", specs.MpolDefault: "default",
		specs.MpolPreferredMany: "prefer (many):0", specs.MpolWeightedInterleave: "weighted interleave:0",
	}
	for _, mode := range Features().Linux.MemoryPolicy.Modes {
		s := plainSpec("read -r line </proc/self/numa_maps; echo \"$line\"")
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MemoryPolicyModeType(mode), Nodes: "0"}
		if mode == string(specs.MpolDefault) || mode == string(specs.MpolLocal) {
			s.Linux.MemoryPolicy.Nodes = ""
		}
		out, status := f.attempt(s)
		if mode == string(specs.MpolWeightedInterleave) && os.Getenv("PSI_TEST_VM") != "" && strings.Contains(out, "set_mempolicy: invalid argument") {
			continue // since Linux 6.9
		}
		if want := said[specs.MemoryPolicyModeType(mode)]; want == "" || !strings.Contains(out, " "+want+" ") {
			t.Errorf("mode %s: exit code %d, %q, want %q", mode, status, out, want)
		}
	}
}

// No machine of the tests has an RDMA device: the limit is written, and refused by name.
func TestFeaturesRDMA(t *testing.T) {
	f := newFixture(t)
	handles := uint32(1)
	s := plainSpec("true")
	s.Linux.Resources = &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"none0": {HcaHandles: &handles}}}
	if said, status := f.attempt(s); status != -1 || !strings.Contains(said, "rdma") {
		t.Errorf("a limit of a device that is not there: exit code %d, %q", status, said)
	}
}

// A device of the caller's network namespace, under another name.
func TestFeaturesNetDevices(t *testing.T) {
	f := newFixture(t)
	name := "psi" + strconv.Itoa(os.Getpid()%100000)
	if out, err := exec.Command("ip", "link", "add", name, "type", "veth", "peer", "name", name+"p").CombinedOutput(); err != nil {
		t.Fatalf("making a device: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	s := plainSpec("while read line; do echo $line; done </proc/net/dev")
	s.Linux.NetDevices = map[string]specs.LinuxNetDevice{name + "p": {Name: "moved"}}
	if said, status := f.attempt(s); !strings.Contains(said, "moved:") {
		t.Errorf("the container has these devices (exit code %d):\n%s", status, said)
	}
}

func TestFeaturesSeccomp(t *testing.T) {
	f := newFixture(t)
	claims := Features().Linux.Seccomp
	try := func(what string, change func(*specs.LinuxSeccomp, *specs.LinuxSyscall)) {
		t.Helper()
		s := plainSpec("exit 7")
		rule := specs.LinuxSyscall{Names: []string{"acct"}, Action: specs.ActErrno}
		filter := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		change(filter, &rule)
		filter.Syscalls = []specs.LinuxSyscall{rule}
		s.Linux.Seccomp = filter
		if said, status := f.attempt(s); status != 7 {
			t.Errorf("a filter with %s: exit code %d, %q", what, status, said)
		}
	}
	for _, action := range claims.Actions {
		if action == string(specs.ActNotify) {
			continue // TestFeaturesSeccompNotify
		}
		try(action, func(_ *specs.LinuxSeccomp, r *specs.LinuxSyscall) { r.Action = specs.LinuxSeccompAction(action) })
	}
	for _, operator := range claims.Operators {
		try(operator, func(_ *specs.LinuxSeccomp, r *specs.LinuxSyscall) {
			r.Args = []specs.LinuxSeccompArg{{Index: 0, Op: specs.LinuxSeccompOperator(operator), Value: 1}}
		})
	}
	for _, arch := range claims.Archs {
		try(arch, func(s *specs.LinuxSeccomp, _ *specs.LinuxSyscall) {
			s.Architectures = []specs.Arch{specs.ArchX86_64, specs.Arch(arch)}
		})
	}
	for _, flag := range claims.SupportedFlags {
		if !slices.Contains(claims.KnownFlags, flag) {
			t.Errorf("the flag %s is supported and not known", flag)
		}
		try(flag, func(s *specs.LinuxSeccomp, _ *specs.LinuxSyscall) {
			s.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlag(flag)}
		})
	}
}

// Whoever listens is told of the container, and given the filter's descriptor.
func TestFeaturesSeccompNotify(t *testing.T) {
	f := newFixture(t)
	if !slices.Contains(Features().Linux.Seccomp.Actions, string(specs.ActNotify)) {
		t.Fatal("the action is not claimed")
	}
	path := filepath.Join(t.TempDir(), "listener")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	type told struct {
		state       specs.ContainerProcessState
		descriptors int
		err         error
	}
	listened := make(chan told, 1)
	go func() {
		var got told
		defer func() { listened <- got }()
		conn, err := listener.AcceptUnix()
		if err != nil {
			got.err = err
			return
		}
		defer conn.Close()
		data, oob := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
		if err != nil {
			got.err = err
			return
		}
		got.err = json.Unmarshal(data[:n], &got.state)
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			got.descriptors = len(fds)
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}()
	s := plainSpec("exit 7")
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "mine",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"acct"}, Action: specs.ActNotify}}}
	if said, status := f.attempt(s); status != 7 {
		t.Fatalf("exit code %d, %q", status, said)
	}
	got := <-listened
	if got.err != nil || got.descriptors != 1 || got.state.Metadata != "mine" || got.state.State.ID == "" || !slices.Contains(got.state.Fds, specs.SeccompFdName) {
		t.Errorf("the listener was told %+v", got)
	}
}
