package attend

import (
	"fmt"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// files is the guest's file rules, where the kernel holds them (BPF-LSM). Elsewhere
// the guest's mounts do, which were made before.
type files struct {
	guest  *enforce.FileGuest // nil where the mounts do it
	rules  enforce.Files
	places func(policy.Policy) []string
}

// openFiles holds the guest to its file rules from its first instruction on, and
// to what no guest may do.
func openFiles(c Container, p policy.Policy, opts Options) (files, error) {
	if opts.Files == nil {
		return files{}, nil
	}
	dir, err := c.UnifiedCgroup()
	if err != nil {
		return files{}, fmt.Errorf("holding the guest's file rules: %w", err)
	}
	f := files{places: opts.places, rules: enforce.Files{
		Own: opts.OwnFiles, Rules: p.FS(), Places: opts.places(p), Forked: c.Forked(),
	}}
	if f.rules.MountNamespace, err = c.MountNamespace(); err != nil {
		return files{}, fmt.Errorf("holding the guest's file rules: %w", err)
	}
	if f.guest, err = opts.Files.Attach(dir, f.rules); err != nil {
		return files{}, fmt.Errorf("holding the guest's file rules: %w", err)
	}
	return f, nil
}

// places are where files of the host are.
func (o Options) places(p policy.Policy) []string {
	if o.Filter {
		return o.Volumes
	}
	return policy.Places(p.FS())
}

// update puts another policy's rules into force, with one write.
func (f *files) update(p policy.Policy) error {
	if f.guest == nil {
		return nil
	}
	next := f.rules
	next.Rules, next.Places = p.FS(), f.places(p)
	if err := f.guest.Update(next); err != nil {
		return fmt.Errorf("updating the guest's file rules: %w", err)
	}
	f.rules = next
	return nil
}

func (f *files) enforced(p policy.Policy) []Enforcement {
	if f.guest == nil {
		return nil
	}
	list := []Enforcement{{"mount, chroot, ptrace, bpf, modules", "BPF-LSM"}}
	for _, r := range p.FS() {
		list = append(list, Enforcement{fmt.Sprintf("fs %s %s", r.Mode, r.Pattern), "BPF-LSM"})
	}
	return list
}

func (f *files) close() error {
	if f.guest == nil {
		return nil
	}
	return f.guest.Close()
}
