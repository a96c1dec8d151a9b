package engine

import (
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/modules"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Enforcement names a rule of a policy and what holds it.
type Enforcement struct {
	Rule string `json:"rule"` // as documents write it: "mem: 256MiB"
	By   string `json:"by"`
	// Missing: nothing holds the rule, By says why. Only with allow_degraded.
	Missing bool `json:"missing,omitempty"`
}

// Narrowed is a container's specification under a policy.
type Narrowed struct {
	Spec     *specs.Spec
	Confine  Confine
	Files    Files
	Pairs    Pairs // who decides where pairs of datagram sockets lead
	Given    Given // what was narrowed
	Enforced []Enforcement
}

// Files is what the host's LSM programs, where it has them, hold a container to.
type Files struct {
	// Volumes are what shows files of the host: there the policy's rules decide. Whoever
	// makes the container sees to it that their sources are not exchanged meanwhile.
	Volumes []Volume `json:"volumes,omitempty"`
	// Needed: nothing else holds some rule.
	Needed bool `json:"needed,omitempty"`
	// Masks are the paths in the container that are masked because rules say so, and for no
	// other reason: where mounts hold the rules, others can take them away again.
	Masks []string `json:"masks,omitempty"`
	// Modules are the paths in the container that are hidden because its import list says so,
	// and for no other reason than that and rules; of a bundle of psi's own those that its
	// root has in spite of that.
	Modules []string `json:"modules,omitempty"`
}

// Volume is a mount that shows files of the host.
type Volume struct {
	Destination string `json:"destination"`
	Source      string `json:"source"`
	ReadOnly    bool   `json:"readonly,omitempty"`
	Given       bool   `json:"given_readonly,omitempty"` // ReadOnly as the engine made it, which no policy changes
	File        bool   `json:"file,omitempty"`           // it shows a file; else a directory
}

// Places are where the volumes are in the container.
func (f Files) Places() (places []string) {
	for _, v := range f.Volumes {
		places = append(places, v.Destination)
	}
	return places
}

// Confine is what psi-init puts on each process of the container, in a form that can
// be written down.
type Confine struct {
	Filters []string       `json:"filters,omitempty"` // names of filters: Hold, Python, PythonPairs
	Domain  []confine.Rule `json:"domain,omitempty"`  // Landlock; nil is none
}

// None reports whether there is nothing to put on.
func (c Confine) None() bool { return len(c.Filters) == 0 && c.Domain == nil }

// Confinement is c for psi-init.
func (c Confine) Confinement() (confine.Confinement, error) {
	out := confine.Confinement{Domain: c.Domain}
	for _, name := range c.Filters {
		f, err := filter(name)
		if err != nil {
			return out, err
		}
		program, err := confine.Program(f)
		if err != nil {
			return out, err
		}
		out.Filters = append(out.Filters, program)
	}
	return out, nil
}

// Host is what Narrow knows of the host. [Look] finds it out.
type Host struct {
	// Namespaces of the specification, by path, that are the host's own.
	OwnNamespaces map[string]bool
	// Kinds of the sources of mounts, by path.
	Kinds map[string]Kind
	// ReadOnly sources are on a mount of the host that is read-only.
	ReadOnly map[string]bool
	// Landlock is the version the kernel has; 0 is none.
	Landlock int
	// Network says why eBPF programs cannot hold network rules here; nil if they can.
	Network error
	// Files says why LSM programs cannot hold file rules here; nil if they can. It is
	// called when a policy needs them.
	Files func() error
	// Pairs says who decides where pairs of datagram sockets lead. It is called when a
	// policy has the filter that can let them be made; nil is nobody.
	Pairs func() Pairs
	// List names the files and directories (no links) in a directory of the image.
	List func(dir string) ([]string, error)
	// Modules are those of the image, see [ReadModules]. It is called when a policy limits imports.
	Modules func() (*Modules, error)
	// Doors names the sockets and FIFOs in a directory of the host and below it, relative
	// to it: they lead out of a container. The error says why they cannot be told.
	Doors func(dir string) ([]string, error)
	// EngineMounts are directories of the host whose files need no rule.
	EngineMounts []string
}

// Kind is what the source of a mount is.
type Kind string

// The kinds that matter.
const (
	File      Kind = "file"
	Directory Kind = "directory"
	Other     Kind = "socket, device or FIFO"
	Absent    Kind = "" // or not a path
)

// narrowing is one call of Narrow.
type narrowing struct {
	policy policy.Policy
	host   Host
	spec   *specs.Spec // a copy, all of it ours
	out    Narrowed
	// running: the container has been made, and whether it may be degraded was settled.
	running bool

	// Rules with wildcards that LSM programs are to hold: those that open and those that deny.
	opening, denying []pattern
	denied           []string // literal paths

	masks   []string // see Files.Masks; some may be masked for another reason too
	modules []string // see Files.Modules, likewise
	kept    []string // what is masked for other reasons
}

// Narrow puts a policy on a container of an engine. It changes nothing that it is
// given. The result is never wider than the engine's specification: narrowing it
// again changes nothing.
func Narrow(spec *specs.Spec, p policy.Policy, host Host) (Narrowed, error) {
	own, err := clone(spec)
	if err != nil {
		return Narrowed{}, err
	}
	n := &narrowing{policy: p, host: host, spec: own}
	if n.out.Given, err = givenBy(own); err != nil {
		return Narrowed{}, fmt.Errorf("the container's policy (%s) cannot be enforced: %w", p.Digest()[:19], err)
	}
	for _, step := range []func() error{
		n.namespaces, n.resources, n.process, n.network, n.mounts, n.kernelFiles, n.calls, n.agent,
	} {
		if err := step(); err != nil {
			return Narrowed{}, fmt.Errorf("the container's policy (%s) cannot be enforced: %w", p.Digest()[:19], err)
		}
	}
	n.settleMasks(spec)
	n.out.Spec = n.spec
	return n.out, nil
}

// holds reports a rule that is held.
func (n *narrowing) holds(rule, by string, args ...any) {
	n.out.Enforced = append(n.out.Enforced, Enforcement{Rule: rule, By: fmt.Sprintf(by, args...)})
}

// misses reports a rule that nothing holds: an error, unless the policy allows it.
func (n *narrowing) misses(rule string, why error) error {
	if !n.policy.AllowDegraded() && n.running {
		return fmt.Errorf("%s: %w", rule, why)
	}
	if !n.policy.AllowDegraded() {
		return fmt.Errorf("%s: %w (allow_degraded: true starts it without)", rule, why)
	}
	n.out.Enforced = append(n.out.Enforced, Enforcement{Rule: rule, By: why.Error(), Missing: true})
	return nil
}

// agent reports the rules that only psi's own agent knows of.
func (n *narrowing) agent() error {
	l := n.policy.Limits()
	const by = "the agent of a psi image, not the host"
	n.holds("message: "+size(l.Message), by)
	n.holds("output: "+size(l.Output), by)
	allowed, limited := n.policy.Imports()
	if !limited {
		return nil
	}
	rule := importsRule(allowed)
	all, err := n.host.Modules()
	if err == nil {
		n.modules, err = all.Hidden(allowed)
	}
	if errors.Is(err, modules.ErrNoGraph) {
		return n.misses(rule, fmt.Errorf("only an image that `psi-runtime rootfs` has made tells which files its modules are (%s): use one, or leave imports out", modules.File))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rule, err)
	}
	n.spec.Linux.MaskedPaths = union(n.spec.Linux.MaskedPaths, n.modules)
	n.holds(rule, maskedModules, len(n.modules))
	return nil
}
