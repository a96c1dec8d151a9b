package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/confine"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/internal/engine"
	"github.com/psi-runtime/psi/pkg/policy"
)

// guard is the policy of a container, ready to be enforced. A nil *guard is a
// container without one; its methods then do nothing.
type guard struct {
	record engine.Record
	// confinement is what psi-init puts on; nil is nothing.
	confinement *confine.Confinement
	// loaded gives the network programs, which are found or put into the kernel while the container
	// is being made; nil if they cannot be had.
	loaded func() *enforce.Programs
	// files gives the host's LSM programs, or says why there are none.
	files func() (*enforce.FilePrograms, error)
}

// guardOf decides which policy the container of a bundle has, and narrows the
// specification to it. A policy that cannot be read, or could not be enforced for
// this bundle, is an error before anything is made.
func guardOf(g *global, spec *specs.Spec, dir string) (*guard, error) {
	engine.Forget(spec)
	rules, err := engine.ReadConfig(g.config, g.class)
	if err != nil {
		return nil, err
	}
	choice, err := engine.Settle(spec, rules, g.policy, policy.Lookup)
	if err != nil || choice == nil {
		return nil, err
	}
	p := choice.Policy
	out := newGuard(engine.Record{Policy: p, Own: choice.Own, Made: engine.Made{Policy: p, Bounds: choice.Bounds}})
	record := &out.record
	var network error
	if p.AllowDegraded() {
		network = probeNetwork()
	}
	if record.Own {
		return out, out.guardOwn(spec, network)
	}
	host, err := engine.Look(spec, dir, rules)
	if err != nil {
		return nil, err
	}
	host.Network, host.Files = network, out.lacksFiles
	host.Pairs = func() engine.Pairs { return pairsOf(host.Files(), nil) }
	narrowed, err := engine.Narrow(spec, p, host)
	if err != nil {
		return nil, err
	}
	*spec = *narrowed.Spec
	record.Confine, record.Files, record.Given, record.Enforced = narrowed.Confine, narrowed.Files, narrowed.Given, narrowed.Enforced
	record.Made.Pairs = narrowed.Pairs
	if out.confinement, err = confinementOf(narrowed.Confine); err != nil {
		return nil, err
	}
	return out, record.Write(spec)
}

// guardOwn does the same for a bundle of psi's own: all that is left to choose is its filter.
func (g *guard) guardOwn(spec *specs.Spec, network error) (err error) {
	record, files := &g.record, g.lacksFiles()
	record.Files.Needed = files == nil
	if record.Made.Pairs, err = engine.ChooseFilter(spec, record.Policy, pairsOf(files, record.Policy.Expose())); err != nil {
		return err
	}
	record.Enforced = engine.Own(record.Policy, engine.Holds{Network: network, Files: files == nil}, record.Made.Pairs)
	return record.Write(spec)
}

// pairsOf says who decides where a container's pairs of datagram sockets lead. files says why
// LSM programs do not. Those at its cgroup are not asked when an end is given a name of its own,
// at which the host could send to it: so who may bind has none by them.
func pairsOf(files error, exposed []uint16) engine.Pairs {
	switch {
	case files == nil:
		return engine.PairsByLSM
	case len(exposed) == 0 && container.HasCgroup2() && enforce.ProbePairs() == nil:
		return engine.PairsByCgroup
	}
	return ""
}

func newGuard(record engine.Record) *guard {
	return &guard{record: record, loaded: func() *enforce.Programs { return nil }, files: sync.OnceValues(enforce.LoadFiles)}
}

// probeNetwork says why the network programs cannot be loaded; nil if they can.
func probeNetwork() error {
	programs, err := enforce.Load()
	if err != nil {
		return err
	}
	return programs.Close()
}

// lacksFiles says why the LSM programs cannot be loaded; nil if they are.
func (g *guard) lacksFiles() error {
	_, err := g.files()
	return err
}

func confinementOf(c engine.Confine) (*confine.Confinement, error) {
	if c.None() {
		return nil, nil
	}
	out, err := c.Confinement()
	return &out, err
}

// prepare adds what the container's process needs before it starts.
func (g *guard) prepare(o *container.CreateOptions) {
	if g == nil {
		return
	}
	o.Confine, o.Pinned = g.confinement, g.record.Files.Places()
	if g.record.Own {
		o.RootFiles = attend.RootFiles(g.record.Policy) // how it finds names
	}
}

// guardAgain is the guard of a container that exists, for its attendant.
func guardAgain(c *container.Container) (*guard, error) {
	record, err := engine.ReadRecord(c.Annotations())
	if err != nil || record == nil {
		return nil, err
	}
	return newGuard(*record), nil
}

// guardExec puts the container's policy on one more process. Where there is one, it stays
// what it is until the container is unlocked.
func guardExec(c *container.Container, o *container.ProcessOptions) error {
	record, err := engine.ReadRecord(c.Annotations())
	if err != nil || record == nil {
		return errors.Join(err, c.Unlock()) // in a paused container it may wait for long
	}
	if record.Own {
		o.Process = record.OwnProcess(o.Process)
		return nil
	}
	if o.Process, err = engine.Process(o.Process, record.Policy); err != nil {
		return err
	}
	o.Confine, err = confinementOf(record.Confine)
	return err
}

// guardUpdate keeps an update within the container's policy, and notes what was asked for.
func guardUpdate(c *container.Container, s container.Settings) (container.Settings, error) {
	record, err := engine.ReadRecord(c.Annotations())
	if err != nil || record == nil {
		return s, err
	}
	if s.Resources, err = record.Update(s.Resources); err != nil {
		return s, err
	}
	s.Annotations, err = record.Annotations()
	return s, err
}

// load begins to put the programs into the kernel, for attend in this
// process. If it cannot be done attend will find that out again, and decide.
// Call unload in the end.
func (g *guard) load() {
	if g == nil {
		return
	}
	g.loaded = sync.OnceValue(func() *enforce.Programs {
		programs, err := enforce.Load()
		if err != nil {
			return nil
		}
		if g.byCgroup() {
			programs.HoldsPairs() // loads those too
		}
		return programs
	})
	go g.loaded()
	go func() { _, _ = g.files() }()
}

// byCgroup says whether programs at the container's cgroup decide where its pairs of datagram
// sockets lead.
func (g *guard) byCgroup() bool { return g.record.Made.Pairs == engine.PairsByCgroup }

// unload leaves what load has found to the next process. The guest has ended, or was never attended.
func (g *guard) unload() error {
	if g == nil {
		return nil
	}
	var errs []error
	if programs := g.loaded(); programs != nil {
		errs = append(errs, programs.Close())
	}
	if files, err := g.files(); err == nil {
		errs = append(errs, files.Close())
	}
	return errors.Join(errs...)
}

// attendance is a guest being attended by this process.
type attendance struct {
	a        *attend.Attendant // nil without a policy
	events   *control.EventLog
	policies *control.PolicyServer
	id       string
	rootfs   *os.File // see reloader
}

// attend puts the policy into force; the container must not have been started.
func (g *guard) attend(c *container.Container) (*attendance, error) {
	if g == nil {
		return &attendance{}, nil
	}
	if g.record.Own && !c.PrivateNet() {
		return &attendance{}, errors.New("the bundle's policy cannot be enforced: the bundle has no network namespace of its own (linux.namespaces: add one of type network, without a path)")
	}
	files, err := g.files()
	if err != nil && (g.record.Files.Needed || !errors.Is(err, enforce.ErrNotSupported)) {
		return &attendance{}, fmt.Errorf("holding the file rules of container %s: %w", c.ID(), err)
	}
	events, err := control.OpenEventLog(c.StateDir(), c.ID())
	if err != nil {
		return &attendance{}, fmt.Errorf("enforcing the policy of container %s: %w", c.ID(), err)
	}
	tell := func(e attend.Event) { tellEvent(events, e) }
	a, err := attend.Start(c, g.record.Policy, attend.Options{
		Programs: g.loaded(), Files: files, Filter: !g.record.Own, Pairs: g.byCgroup(), OnEvent: tell,
		OwnFiles: g.record.OwnFiles, Places: g.record.Places,
	})
	if err != nil {
		return &attendance{}, errors.Join(fmt.Errorf("enforcing the policy of container %s: %w", c.ID(), err), events.Close())
	}
	r := &reloader{root: filepath.Dir(c.StateDir()), id: c.ID(), a: a, tell: tell,
		hosts: string(attend.RootFiles(g.record.Policy)["/etc/hosts"])}
	err = g.findFiles(c, r, files != nil)
	var policies *control.PolicyServer
	if err == nil {
		policies, err = control.ServePolicy(c.StateDir(), r.change)
	}
	if err != nil {
		return &attendance{}, errors.Join(fmt.Errorf("enforcing the policy of container %s: %w", c.ID(), err), a.Close(), events.Close())
	}
	return &attendance{a: a, events: events, policies: policies, id: c.ID(), rootfs: r.rootfs}, nil
}

// findFiles notes what later policies have to know of the container's files: it has not run yet,
// and could change them.
func (g *guard) findFiles(c *container.Container, r *reloader, programs bool) (err error) {
	_, limited := g.record.Policy.Imports()
	if !g.record.Own && (limited || !programs) {
		r.held, r.unknown = c.FindMasks(g.record.Files.Places(), slices.Concat(g.record.Files.Masks, g.record.Files.Modules))
	}
	switch {
	case !limited:
	case g.record.Own: // its root is the bundle's, where it cannot write
		r.rootfs, err = os.OpenFile(c.Rootfs(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		r.modules = func() (*engine.Modules, error) {
			return engine.ReadModules(fmt.Sprintf("/proc/self/fd/%d", r.rootfs.Fd()))
		}
	default:
		found, err := engine.ReadModules(c.Rootfs())
		r.modules = func() (*engine.Modules, error) { return found, err }
	}
	return err
}

// tellEvent writes an event down for `psi-runtime events`, and into the log.
func tellEvent(events *control.EventLog, e attend.Event) {
	level := logrus.InfoLevel
	if e.Type == attend.Denied {
		level = logrus.DebugLevel // a guest may be denied as often as it likes, and nobody bounds the log
	}
	logrus.WithFields(logFields(e.Details)).Log(level, e.Type)
	if err := events.Add(e.Type, e.Time, e.Details); err != nil {
		logrus.WithError(err).Error("telling an event")
	}
}

// logFields are an event's details without those that have no value: a denial that no
// rule decided has none to name.
func logFields(details map[string]any) logrus.Fields {
	fields := logrus.Fields{}
	for key, value := range details {
		if value != nil {
			fields[key] = value
		}
	}
	return fields
}

// failed is what run returns for an error in making or starting the container: the guest's end, if
// its policy has ended it before its program began.
func (a *attendance) failed(err error) (int, error) {
	if a.a == nil {
		return 0, err
	}
	if cause, _, _ := a.a.Cause(); cause == "" {
		return 0, err
	}
	return 128 + int(unix.SIGKILL), nil
}

// end stops attending and says why the guest was ended, if attend ended it. The
// guest's first process has been reaped.
func (a *attendance) end() error {
	if a.a == nil {
		return nil
	}
	err := errors.Join(a.policies.Close(), a.a.Close())
	if a.rootfs != nil {
		err = errors.Join(err, a.rootfs.Close())
	}
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
	return errors.Join(err, a.events.Close())
}

// attendPatience is how long `create` waits for its attendant to be ready.
const attendPatience = 30 * time.Second
