package enforce

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/link"

	"github.com/psi-runtime/psi/bpf"
	"github.com/psi-runtime/psi/internal/endpoint"
)

// Listeners are the sockets that get what [Steer] steers: descriptors of TCP over IPv4,
// TCP over IPv6, UDP over IPv4 and UDP over IPv6; -1 where there is none.
type Listeners [4]int

// Steering is a program at a network namespace that finds listeners for ranges of
// ports.
type Steering struct {
	objects bpf.LookupObjects
	link    *link.NetNsLink
}

// Steer gives connections and datagrams to what entries allow, in the network
// namespace netns, to the listeners, whatever port these are bound to; everything else
// goes where it would have gone. Several programs may be at one namespace, so that Steer
// and then Close of its predecessor leaves no gap. The error wraps [ErrNotSupported] when the host lacks something.
func Steer(netns *os.File, entries []endpoint.Entry, listeners Listeners) (*Steering, error) {
	spec, err := bpf.LoadLookup()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded lookup program: %w", err)
	}
	dropDebugInfo(spec)
	s := &Steering{}
	if err := spec.LoadAndAssign(&s.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the lookup program: %w", explain(err))
	}
	if err := s.fill(entries, listeners); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.link, err = link.AttachNetNs(int(netns.Fd()), s.objects.Lookup); err != nil {
		return nil, errors.Join(fmt.Errorf("attaching the lookup program to the guest's network namespace: %w", explain(err)), s.Close())
	}
	return s, nil
}

func (s *Steering) fill(entries []endpoint.Entry, listeners Listeners) error {
	for slot, fd := range listeners {
		if fd < 0 {
			continue
		}
		if err := s.objects.Listeners.Put(uint32(slot), uint64(fd)); err != nil {
			return fmt.Errorf("giving a listener to the lookup program: %w", err)
		}
	}
	ranges := make(map[uint32]bool)
	for _, e := range entries {
		number := rangeNumber(e)
		if !ranges[number] {
			ranges[number] = true
			for _, block := range e.Ports.Prefixes() {
				key := bpf.LookupPort{Prefixlen: uint32(32 + block.Bits), Protocol: uint32(e.Protocol), Port: networkOrder(block.Port)}
				if err := s.objects.LookupPorts.Put(key, number); err != nil {
					return fmt.Errorf("writing ports %s of the lookup program: %w", e.Ports, err)
				}
			}
		}
		verdict := verdictDeny
		if e.Allow {
			verdict = verdictAllow
		}
		key := bpf.LookupSteer{Prefixlen: uint32(32 + e.Block.Bits()), Range: number, Addr: words(e.Block.Addr().As16())}
		if err := s.objects.Steered.Put(key, verdict); err != nil {
			return fmt.Errorf("writing rule %s port %s of the lookup program: %w", e.Block, e.Ports, err)
		}
	}
	return nil
}

// Close takes the program away.
func (s *Steering) Close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	if err := errors.Join(append(errs, s.objects.Close())...); err != nil {
		return fmt.Errorf("closing the lookup program: %w", err)
	}
	return nil
}
