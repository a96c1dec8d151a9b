package main

import (
	"errors"
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// guard is the policy that a bundle carries, ready to be enforced. A nil *guard is
// a bundle without one; its methods then do nothing.
type guard struct {
	policy policy.Policy
	hosts  []byte // the guest's /etc/hosts
	ours   bool   // a bundle of psi's own, with a root and a network of its own
	// programs are put into the kernel while the container is being made.
	programs chan *enforce.Programs
}

// guardOf reads the policy of a bundle. A policy that cannot be read, or that could
// not be enforced for this bundle, is an error before anything is made.
func guardOf(spec *specs.Spec) (*guard, error) {
	text, ok := spec.Annotations[container.AnnotationPolicy]
	if !ok {
		return nil, nil
	}
	p, err := policy.Parse([]byte(text), "annotation "+container.AnnotationPolicy)
	if err != nil {
		return nil, fmt.Errorf("reading the bundle's policy: %w", err)
	}
	g := &guard{policy: p, ours: container.AutoIDs(spec), programs: make(chan *enforce.Programs, 1)}
	if !g.ours {
		// What an engine runs gets its mounts and its network from the engine: there
		// the policy can forbid, and must not add.
		if len(p.TCP()) > 0 {
			return nil, fmt.Errorf("the bundle's policy allows %s: endpoints can be opened only for a bundle made by psi-runtime bundle (annotation io.psi.ids=auto)", p.TCP()[0])
		}
		return g, nil
	}
	g.hosts = attend.Hosts(p)
	return g, nil
}

// prepare adds what has to be in the guest's root before it starts.
func (g *guard) prepare(o *container.CreateOptions) {
	if g != nil && g.ours {
		o.RootFiles = map[string][]byte{"/etc/hosts": g.hosts}
	}
}

// load begins to put the network programs into the kernel, for attend in this
// process. If it cannot be done attend will find that out again, and decide.
func (g *guard) load() {
	if g == nil {
		return
	}
	go func() {
		programs, err := enforce.Load()
		if err != nil {
			programs = nil
		}
		g.programs <- programs
	}()
}

// attendance is a guest being attended by this process.
type attendance struct {
	a  *attend.Attendant // nil without a policy
	id string
}

// attend puts the policy into force; the container must not have been started.
func (g *guard) attend(c *container.Container) (*attendance, error) {
	if g == nil {
		return &attendance{}, nil
	}
	if !c.PrivateNet() {
		return &attendance{}, errors.New("the bundle's policy cannot be enforced: the bundle has no network namespace of its own (linux.namespaces: add one of type network, without a path)")
	}
	a, err := attend.Start(c, g.policy, attend.Options{Programs: <-g.programs, OnEvent: func(e attend.Event) {
		logrus.WithFields(logrus.Fields(e.Details)).Info(e.Type)
	}})
	if err != nil {
		return &attendance{}, fmt.Errorf("enforcing the policy of container %s: %w", c.ID(), err)
	}
	return &attendance{a: a, id: c.ID()}, nil
}

// end stops attending and says why the guest was ended, if attend ended it. The
// guest's first process has been reaped.
func (a *attendance) end() error {
	if a.a == nil {
		return nil
	}
	err := a.a.Close()
	switch cause, limit, observed := a.a.Cause(); cause {
	case "":
	case attend.CauseOOM:
		logrus.Warnf("container %s was killed: it needed more memory than its policy allows (mem: %.0f bytes, observed %.0f)", a.id, limit, observed)
	case attend.CauseCPU:
		logrus.Warnf("container %s was killed: it used more cpu time than its policy allows (cpu_ms: %.0f, observed %.0f)", a.id, limit, observed)
	case attend.CauseWall:
		logrus.Warnf("container %s was killed: it lived longer than its policy allows (wall_ms: %.0f, observed %.0f)", a.id, limit, observed)
	default:
		logrus.Warnf("container %s was killed: %s", a.id, cause)
	}
	a.a = nil
	return err
}

// attendPatience is how long `create` waits for its attendant to be ready.
const attendPatience = 10 * time.Second
