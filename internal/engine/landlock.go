package engine

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/pkg/policy"
)

// landlock makes the domain that opens parts of volumes. Landlock can only allow, and
// what it allows for a directory it allows below it: so everything beside the way to
// a volume is allowed by name, as it is when the container is made.
func (n *narrowing) landlock(parts []part) error {
	if len(parts) == 0 {
		return nil
	}
	if err := n.landlockHolds(parts); err != nil {
		for _, p := range parts {
			for _, r := range p.rules {
				if err := n.misses(r.rule, err); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, p := range parts {
		// If the image had a link there, the volume would be mounted where it leads.
		if _, err := n.host.List(p.dest); err != nil {
			return fmt.Errorf("looking at the mount point %s: %w", p.dest, err)
		}
	}
	domain := []confine.Rule{{Access: confine.List, Path: "/"}}
	above, dests := map[string]bool{}, map[string]bool{}
	for _, p := range parts {
		dests[p.dest] = true
		for dir := path.Dir(p.dest); ; dir = path.Dir(dir) {
			above[dir] = true
			if dir == "/" {
				break
			}
		}
		for _, r := range p.rules {
			access := confine.Read
			if r.mode == policy.Write {
				access = confine.Write
			}
			domain = append(domain, confine.Rule{Access: access, Path: r.path})
			n.holds(r.rule, "Landlock, by psi-init (names of files can be listed)")
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(above)) {
		names, err := n.entries(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if full := path.Join(dir, name); !above[full] && !dests[full] {
				domain = append(domain, confine.Rule{Access: confine.Full, Path: full})
			}
		}
	}
	for _, m := range n.spec.Mounts {
		inside := func(p part) bool { return m.Destination != p.dest && covers(p.dest, m.Destination) }
		if slices.ContainsFunc(parts, inside) && !dests[m.Destination] {
			domain = append(domain, confine.Rule{Access: confine.Full, Path: m.Destination}) // held by its own options
		}
	}
	n.out.Confine.Domain = domain
	return nil
}

// landlockHolds reports why this host's Landlock cannot hold the parts.
func (n *narrowing) landlockHolds(parts []part) error {
	if n.host.Landlock == 0 {
		return confine.ErrNoLandlock
	}
	for _, p := range parts {
		if p.dest == "/" {
			return errors.New("a volume at / leaves nothing beside it that Landlock could allow")
		}
		if at := slices.IndexFunc(n.spec.Mounts, func(m specs.Mount) bool {
			return m.Destination != p.dest && m.Destination != "/" && isBind(&m) && covers(m.Destination, p.dest)
		}); at >= 0 {
			return fmt.Errorf("the mount at %s lies in that at %s, and Landlock cannot tell them apart: mount it elsewhere", p.dest, n.spec.Mounts[at].Destination)
		}
		read := slices.ContainsFunc(p.rules, func(r reach) bool { return r.mode == policy.Read })
		write := slices.ContainsFunc(p.rules, func(r reach) bool { return r.mode == policy.Write })
		if read && write && n.host.Landlock < confine.ABITruncate {
			return fmt.Errorf("truncate() is held by Landlock from Linux 6.2 on only: open %s for reading or for writing as a whole, or mount the parts by themselves", p.dest)
		}
	}
	return nil
}

// entries are the names in a directory of the container: the image's, and those of
// mount points.
func (n *narrowing) entries(dir string) ([]string, error) {
	names, err := n.host.List(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for what is beside the volumes: %w", err)
	}
	for _, m := range n.spec.Mounts {
		for at := m.Destination; at != "/"; at = path.Dir(at) {
			if path.Dir(at) == dir {
				names = append(names, path.Base(at))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
