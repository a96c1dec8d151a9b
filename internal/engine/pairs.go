package engine

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Pairs is who decides where the ends of pairs of datagram sockets lead, whose own filter of
// system calls sees no names. The zero value is nobody: then such pairs cannot be made.
type Pairs string

// Who may decide.
const (
	PairsByLSM    Pairs = lsm           // what a name leads to, each time
	PairsByCgroup Pairs = "cgroup eBPF" // refuses every name, since Linux 6.7
)

// pairsRule is what a report calls them.
const pairsRule = "pairs of datagram sockets"

// holdsPairs reports who holds them.
func (n *narrowing) holdsPairs(by Pairs) {
	switch by {
	case PairsByLSM:
		n.holds(pairsRule, "%s decides about each name that an end is given", by)
	case PairsByCgroup:
		n.holds(pairsRule, "%s: an end may be given no name", by)
	default:
		n.holds(pairsRule, "none: seccomp filter (they need BPF-LSM, or Linux 6.7 and no exposed port)")
	}
}

// ChooseFilter gives a bundle of psi's own the filter of system calls that fits the host: with pairs of
// datagram sockets if somebody decides where they lead. It returns who does. A bundle on disk
// has the filter without, for any runtime; one with another filter keeps that, and has none.
func ChooseFilter(spec *specs.Spec, p policy.Policy, host Pairs) (Pairs, error) {
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return "", nil
	}
	found, err := confine.Digest(spec.Linux.Seccomp)
	if err != nil {
		return "", err
	}
	without, with := bundle.SeccompOf(p), bundle.SeccompWithPairs(p)
	own := false
	for _, f := range []*specs.LinuxSeccomp{without, with} {
		digest, err := confine.Digest(f)
		if err != nil {
			return "", err
		}
		own = own || digest == found
	}
	if !own {
		return "", nil
	}
	linux := *spec.Linux
	spec.Linux = &linux
	if linux.Seccomp = without; host != "" {
		linux.Seccomp = with
	}
	return host, nil
}

// check refuses what no version of psi has written.
func (p Pairs) check() error {
	switch p {
	case "", PairsByLSM, PairsByCgroup:
		return nil
	}
	return fmt.Errorf("nobody is called %q who decides about %s", p, pairsRule)
}
