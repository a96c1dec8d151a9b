package attend

import (
	"fmt"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// files is the guest's file rules, where the kernel holds them (BPF-LSM). Elsewhere
// the guest's mounts do, which were made before.
type files struct {
	guest *enforce.FileGuest // nil where the mounts do it
	rules enforce.Files
	opts  Options
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
	f := files{opts: opts, rules: opts.rules(enforce.Files{Forked: c.Forked()}, p)}
	if f.rules.MountNamespace, err = c.MountNamespace(); err != nil {
		return files{}, fmt.Errorf("holding the guest's file rules: %w", err)
	}
	if f.guest, err = opts.Files.Attach(dir, f.rules); err != nil {
		return files{}, fmt.Errorf("holding the guest's file rules: %w", err)
	}
	return f, nil
}

// rules are files with those of a policy.
func (o Options) rules(files enforce.Files, p policy.Policy) enforce.Files {
	files.Own, files.Rules = o.OwnFiles(p), p.FS()
	if o.Places == nil {
		files.Places = policy.Places(p.FS())
	} else {
		files.Places = o.Places(p)
	}
	return files
}

// update puts another policy's rules into force, with one write.
func (f *files) update(p policy.Policy) error {
	if f.guest == nil {
		return nil
	}
	next := f.opts.rules(f.rules, p)
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
	list := []Enforcement{{"mount, chroot, ptrace, bpf, modules", "BPF-LSM"}, {"pairs of datagram sockets", "BPF-LSM"}}
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
