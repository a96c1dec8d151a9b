package engine

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

func (n *narrowing) process() error {
	dropped, err := narrowProcess(n.spec.Process, n.policy)
	if err != nil {
		return err
	}
	for _, r := range n.spec.Process.Rlimits {
		if r.Type == "RLIMIT_NOFILE" {
			n.openFiles(r)
		}
	}
	by := "no_new_privs"
	if len(dropped) > 0 {
		by += "; taken away: " + strings.Join(dropped, " ")
	}
	n.holds("privileges", "%s", by)
	return nil
}

func (n *narrowing) openFiles(r specs.POSIXRlimit) {
	n.holds(fmt.Sprintf("open_files: %d", n.policy.Limits().OpenFiles), "RLIMIT_NOFILE: %d", r.Hard)
}

// Process puts a policy on one more process of a container, for exec.
func Process(p *specs.Process, pol policy.Policy) (*specs.Process, error) {
	spec, err := clone(&specs.Spec{Root: &specs.Root{}, Process: p})
	if err != nil {
		return nil, err
	}
	_, err = narrowProcess(spec.Process, pol)
	return spec.Process, err
}

// OwnProcess is one more process of a bundle of psi's own: its policy may be another one
// than the bundle's.
func (r *Record) OwnProcess(p *specs.Process) *specs.Process {
	out := *p
	out.Rlimits = slices.DeleteFunc(slices.Clone(p.Rlimits), func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" })
	out.Rlimits = append(out.Rlimits, r.Given.OpenFiles(r.Policy.Limits()))
	return &out
}

// narrowProcess returns the names of the capabilities that it takes away.
func narrowProcess(p *specs.Process, pol policy.Policy) (dropped []string, err error) {
	p.NoNewPrivileges = true
	open := uint64(pol.Limits().OpenFiles)
	if p.Rlimits, err = narrowRlimits(p.Rlimits, open); err != nil {
		return nil, err
	}
	// The kernel's killer passes a process with -1000 over, and others with less go first.
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < 0 {
		p.OOMScoreAdj = nil
	}
	// A real-time process passes the cpu limit.
	if s := p.Scheduler; s != nil && s.Policy != specs.SchedOther && s.Policy != specs.SchedBatch && s.Policy != specs.SchedIdle {
		p.Scheduler = nil
	}
	if p.Capabilities != nil {
		c := p.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient} {
			*set = slices.DeleteFunc(*set, func(name string) bool {
				if keepsCapability(name, pol) {
					return false
				}
				dropped = append(dropped, name)
				return true
			})
		}
	}
	slices.Sort(dropped)
	return slices.Compact(dropped), nil
}

// keepsCapability: what a root user of a container needs to manage its own files and
// users. All others lead out of the policy: to raw sockets, mounts, limits, devices, the
// kernel. CAP_SYS_CHROOT would change what the paths of fs rules mean.
func keepsCapability(name string, p policy.Policy) bool {
	switch strings.ToUpper(name) {
	case "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_SETFCAP", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE":
		return true
	case "CAP_SYS_CHROOT":
		return len(p.FS()) == 0
	}
	return false
}

func narrowRlimits(limits []specs.POSIXRlimit, open uint64) ([]specs.POSIXRlimit, error) {
	least := map[string]uint64{"RLIMIT_NOFILE": open, "RLIMIT_CORE": 0} // a core file holds the container's memory, on the host
	var out []specs.POSIXRlimit
	seen := map[string]bool{}
	for _, l := range limits {
		if seen[l.Type] {
			return nil, fmt.Errorf("process.rlimits: %s is there twice", l.Type)
		}
		seen[l.Type] = true
		if most, ok := least[l.Type]; ok {
			l.Hard = min(l.Hard, most)
			l.Soft = min(l.Soft, l.Hard)
		}
		out = append(out, l)
	}
	for _, kind := range []string{"RLIMIT_CORE", "RLIMIT_NOFILE"} {
		if !seen[kind] {
			out = append(out, specs.POSIXRlimit{Type: kind, Hard: least[kind], Soft: least[kind]})
		}
	}
	return out, nil
}
