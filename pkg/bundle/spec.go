package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Annotations of a compiled bundle.
const (
	// PolicyKey holds the canonical policy (JSON): what a bundle needs to be enforced.
	PolicyKey = "io.psi.policy"
	// IDsKey set to IDsAuto asks psi-runtime for a host id of the guest's own at
	// create, in the place of PlaceholderID.
	IDsKey  = "io.psi.ids"
	IDsAuto = "auto"
	// RootfsKey holds the digest of the root filesystem.
	RootfsKey = "io.psi.rootfs"
)

// PlaceholderID is the host uid and gid that stands for the guest's own in every
// compiled bundle, so that equal input gives equal bytes. It is the first id of
// the range that psi reserves, 1879048192 (0x70000000) to +2^24.
const PlaceholderID = 0x70000000

// entryFile is where a script entry appears in the guest.
const entryFile = "/usr/lib/psi/entry.py"

// cpuPeriod is the scheduler's period, in microseconds; the policy's cpu limit is
// a share of it.
const cpuPeriod = 100_000

// maxArgs bounds the arguments of a script, in bytes with their terminators: the
// kernel takes 128 KiB for one.
const maxArgs = 64 << 10

// Entry says what the guest runs: the agent, which then obeys the channel, or a
// script with arguments, run by the agent.
type Entry struct {
	Script string   // host path of a Python source file; "" for the agent
	Args   []string // sys.argv[1:] of the script; none for the agent
	// Waits: the agent is told what it has to know of the policy ([AgentConfig]) by the
	// first frame of its channel. Then its environment says nothing of the policy.
	Waits bool
}

// Compile makes the OCI configuration of a guest. It is a pure function: it looks
// at nothing but its arguments, and equal arguments give equal results, byte for
// byte once marshalled.
//
// Any OCI runtime can run the result. psi-runtime does more with it: it puts an id
// of the guest's own in the place of [PlaceholderID] and the client's in the place
// of containerID 0 in the mappings of the views ("idmap" mounts; a runtime that does
// not know them shows those files as owned by nobody), and it enforces the
// annotated policy: endpoints, processor time, lifetime.
func Compile(p policy.Policy, r RootfsInfo, v View, e Entry) (*specs.Spec, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("compiling bundle: root filesystem: %w", err)
	}
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("compiling bundle: %w", err)
	}
	args, err := e.command(r)
	if err != nil {
		return nil, fmt.Errorf("compiling bundle: %w", err)
	}
	env := environment(strings.Join(append([]string{"channel"}, p.Preload()...), " "))
	if !e.Waits {
		if env, err = Environment(p); err != nil {
			return nil, fmt.Errorf("compiling bundle: %w", err)
		}
	}
	l := p.Limits()
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			User:            specs.User{UID: 0, GID: 0},
			Args:            args,
			Env:             env,
			Cwd:             "/",
			Capabilities:    &specs.LinuxCapabilities{},
			Rlimits:         rlimits(l),
			NoNewPrivileges: true,
		},
		Root:     &specs.Root{Path: rootDir, Readonly: true},
		Hostname: "psi",
		Mounts:   mounts(l, v, e),
		Annotations: map[string]string{
			PolicyKey: string(p.Canonical()),
			IDsKey:    IDsAuto,
			RootfsKey: r.Digest,
		},
		Linux: &specs.Linux{
			UIDMappings:   []specs.LinuxIDMapping{{ContainerID: 0, HostID: PlaceholderID, Size: 1}},
			GIDMappings:   []specs.LinuxIDMapping{{ContainerID: 0, HostID: PlaceholderID, Size: 1}},
			Namespaces:    namespaces(),
			Resources:     resources(l),
			Seccomp:       SeccompOf(p),
			MaskedPaths:   MaskedPaths(),
			ReadonlyPaths: ReadonlyPaths(),
		},
	}, nil
}

// command is the guest's argv. -I and -S keep the environment, the user's site
// and site-packages out of the interpreter's start; the agent adds the latter.
// -B: the root is read-only, trying to cache bytecode there only costs time.
func (e Entry) command(r RootfsInfo) ([]string, error) {
	args := []string{r.Interpreter, "-I", "-S", "-B", r.Agent}
	if e.Script == "" {
		if len(e.Args) > 0 {
			return nil, errors.New("the agent takes no arguments: name a script")
		}
		return args, nil
	}
	size := 0
	for i, arg := range e.Args {
		if err := checkText(arg); err != nil {
			return nil, fmt.Errorf("argument %d of the script: %w", i+1, err)
		}
		size += len(arg) + 1
	}
	if size > maxArgs {
		return nil, fmt.Errorf("the arguments of the script take %d bytes, more than %d: send them as data", size, maxArgs)
	}
	return append(append(args, "--script", entryFile), e.Args...), nil
}

// agentConfig is what the agent needs to know of the policy.
type agentConfig struct {
	Imports []string `json:"imports"`           // null: every module; empty: none
	Preload []string `json:"preload,omitempty"` // loaded before guest code begins
	Message int64    `json:"message"`           // bytes
	Output  int64    `json:"output"`            // bytes
	Threads int64    `json:"threads,omitempty"` // that numerical libraries may start; 0: the environment says it
}

// AgentConfig is the payload of a CONFIG frame, and the content of [ReloadedFile].
func AgentConfig(p policy.Policy) ([]byte, error) { return encodeConfig(p, threads(p)) }

// CommonConfig is the AgentConfig of a default policy, which an agent that waits has taken
// already when it starts.
const CommonConfig = `{"imports":null,"message":67108864,"output":16777216,"threads":1}`

func encodeConfig(p policy.Policy, threads int64) ([]byte, error) {
	l := p.Limits()
	config := agentConfig{Message: l.Message, Output: l.Output, Threads: threads}
	if modules, limited := p.Imports(); limited {
		config.Imports = append([]string{}, modules...)
	}
	if threads == 0 {
		config.Preload = p.Preload()
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("writing the agent's configuration: %w", err)
	}
	return data, nil
}

// threads is how many threads numerical libraries are told to start: unless told, they start
// one per processor of the machine, each with its own stack and buffers.
func threads(p policy.Policy) int64 { return max(1, int64(math.Ceil(p.Limits().CPU))) }

// environment is what every guest's environment has.
func environment(config string) []string {
	return []string{"HOME=/tmp", "LANG=C.UTF-8", "PATH=/usr/bin", "PSI_CONFIG=" + config, "TMPDIR=/tmp"}
}

// Environment is the guest's whole environment, nothing of the host's. The agent takes from it
// what it needs of the policy.
func Environment(p policy.Policy) ([]string, error) {
	config, err := encodeConfig(p, 0)
	if err != nil {
		return nil, err
	}
	env := environment(string(config))
	for _, library := range []string{"BLIS", "MKL", "NUMEXPR", "OMP", "OPENBLAS"} {
		env = append(env, library+"_NUM_THREADS="+strconv.FormatInt(threads(p), 10))
	}
	return env, nil
}

// ReloadedFile is where the agent of a running guest finds what a reload has changed, in
// the guest's own root: an [AgentConfig].
const ReloadedFile = "/usr/lib/psi/reloaded"

// rlimits are the limits that no cgroup holds. Hard and soft are equal: there is
// nothing to raise.
func rlimits(l policy.Limits) []specs.POSIXRlimit {
	open := uint64(l.OpenFiles)
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_CORE"},     // a core file would hold the guest's memory, on the host
		{Type: "RLIMIT_MEMLOCK"},  // pinned pages cannot be reclaimed
		{Type: "RLIMIT_MSGQUEUE"}, // kernel memory of queues that the filter forbids
		{Type: "RLIMIT_NOFILE", Hard: open, Soft: open},
	}
}

func namespaces() []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.UserNamespace},
		{Type: specs.PIDNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.CgroupNamespace},
	}
}

// resources are the cgroup limits. Swap counts with memory: a limit that can be
// passed by swapping is none.
func resources(l policy.Limits) *specs.LinuxResources {
	memory, swap, pids := l.Mem, l.Mem, l.PIDs
	quota, period := int64(math.Round(l.CPU*cpuPeriod)), uint64(cpuPeriod)
	return &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, // runtimes add null, zero, full, random, urandom, tty
		Memory:  &specs.LinuxMemory{Limit: &memory, Swap: &swap},
		CPU:     &specs.LinuxCPU{Quota: &quota, Period: &period},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
}

// checkText reports a string that a configuration cannot carry unchanged.
func checkText(s string) error {
	switch {
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%q holds a NUL byte", s)
	case !isText(s):
		return fmt.Errorf("%q is not UTF-8 text, and a configuration is JSON", s)
	}
	return nil
}
