package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// A reload puts another policy into force in running guests, in all of them or in none.
// In each it changes, in this order, and takes back in the other order if a part fails:
//
//	limits     the cgroup's
//	open_files the limit of every process, with the guest frozen until the end
//	fs         mounts, the same
//	imports    the directories with modules in them, mounted over with another layer
//	agent      a file that the guest's agent looks at: imports, message, output
//	tcp        /etc/hosts, programs, proxy; connections that are now forbidden are cut
//	expose     programs, and what connect gives out from now on
//
// The last is the only one that cannot be taken back, so it comes last.

// reloading is one guest's part of a reload.
type reloading struct {
	g         *guest
	old, next policy.Policy
	digest    string // of next
	view      view.Opened
	hosts     string // what /etc/hosts says from now on
	layer     layer  // of the guest from now on
	frozen    bool
	lower     *container.OpenFiles // what remains to be done about them
	undo      undoStack
	end       []func() // whatever became of it, newest first
}

// reload handles the request of that name.
func (s *Supervisor) reload(c *client, r control.Request) (any, error) {
	guests, err := s.authorised(c, r)
	if err != nil {
		return nil, err
	}
	next, err := s.policies.resolve(r, func() {})
	if err != nil {
		return nil, err
	}
	parts := make([]*reloading, len(guests))
	for i, g := range guests {
		g.reloading.Lock() // in the order of their ids
		defer g.reloading.Unlock()
		parts[i] = &reloading{g: g, old: g.currentPolicy(), next: next.policy, digest: next.digest, layer: g.layer}
		if g.importsLimit == nil {
			continue
		}
		if parts[i].next, err = g.importsLimit(next.policy); err != nil {
			return nil, fmt.Errorf("%w: guest %s: %w", errPolicy, g.id, err)
		}
		parts[i].digest = parts[i].next.Digest()
	}
	if r.DryRun {
		return dryRun(parts)
	}
	return struct{}{}, s.reloadAll(parts)
}

// reloadAll applies all parts, and takes all back if one fails.
func (s *Supervisor) reloadAll(parts []*reloading) error {
	defer func() {
		for _, p := range parts {
			for i := len(p.end) - 1; i >= 0; i-- {
				p.end[i]()
			}
		}
	}()
	errs := applyAll(parts)
	if err := errors.Join(errs...); err != nil {
		inParallel(len(parts), func(i int) { errs[i] = parts[i].takeBack() })
		return errors.Join(err, errors.Join(errs...))
	}
	news := make(news)
	for _, p := range parts {
		p.g.client.awaitRoom()
		p.commit(news)
	}
	return nil
}

// takeBack undoes what has been done. A guest that is left with a part of the new policy ends.
func (r *reloading) takeBack() error {
	err := r.undo.run()
	if err != nil && !r.g.hasEnded() {
		r.g.tear(fmt.Errorf("a reload failed and could not be taken back: %w", err))
	}
	return err
}

// tear ends a guest that has neither its old policy nor its new one.
func (g *guest) tear(why error) {
	g.ask(control.CauseSupervisor, why.Error())
	g.s.opts.Log.WithError(errors.Join(why, g.container.KillCgroup())).WithField("guest", g.id).Error("ending a guest")
}

// news are the details of the events of one reload, by the digests of the old and the new
// policy: most guests have the same ones.
type news map[[2]string]map[string]any

func (n news) details(former, digest string, limits policy.Limits) map[string]any {
	key := [2]string{former, digest}
	if n[key] == nil {
		text, _ := json.Marshal(control.LimitsOf(limits)) // numbers: there is no error
		n[key] = map[string]any{"policy_digest": digest, "former_digest": former, "limits": json.RawMessage(text)}
	}
	return n[key]
}

// applyAll applies all parts on a few goroutines, and returns the error of each. Limits are
// changed by one of them, one guest after another: before the kernel changes a share of the
// cpu it looks at every group of the host, for one change at a time, and whoever waits for
// that there keeps a processor busy.
func applyAll(parts []*reloading) []error {
	errs := make([]error, len(parts))
	limited := make(chan int, len(parts))
	finish := func() {
		for i := range limited {
			if errs[i] == nil {
				errs[i] = parts[i].finish()
			}
		}
	}
	var wait sync.WaitGroup
	for range min(len(parts), 2*runtime.NumCPU()) - 1 {
		wait.Go(finish)
	}
	for i, p := range parts {
		errs[i] = p.begin()
		limited <- i
	}
	close(limited)
	finish()
	wait.Wait()
	return errs
}

// inParallel calls do for 0 … n-1 on a few goroutines, this one among them, and waits for all.
func inParallel(n int, do func(int)) {
	var wait sync.WaitGroup
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			do(int(i))
		}
	}
	for range min(n, 2*runtime.NumCPU()) - 1 {
		wait.Go(work)
	}
	work()
	wait.Wait()
}

// begin changes the guest's limits. What it and finish add to undo takes that back.
func (r *reloading) begin() error {
	g := r.g
	if err := checkReload(r.old, r.next); err != nil {
		return err
	}
	r.end = append(r.end, g.use())
	if g.hasEnded() {
		return fmt.Errorf("guest %s has ended", g.id)
	}
	return r.part("limits", r.limits)
}

// finish changes the rest.
func (r *reloading) finish() error {
	for _, part := range []struct {
		name   string
		change func() error
	}{
		{"open files", r.openFiles}, {"files", r.files}, {"imports and names", r.notices}, {"endpoints", r.endpoints},
	} {
		if err := r.part(part.name, part.change); err != nil {
			return err
		}
	}
	return nil
}

func (r *reloading) part(name string, change func() error) error {
	if err := change(); err != nil {
		return fmt.Errorf("reloading the %s of guest %s: %w", name, r.g.id, err)
	}
	return nil
}

func (r *reloading) limits() error {
	a, b := r.old.Limits(), r.next.Limits()
	forth, back := changedLimits(a, b), changedLimits(b, a)
	if forth == (policy.Limits{}) {
		return nil
	}
	r.undo.add(func() error { return r.g.container.Update(back) }) // a part may be in force when it fails
	return r.g.container.Update(forth)
}

// changedLimits are those of a cgroup's that are new, and 0 for the others.
func changedLimits(before, after policy.Limits) (changed policy.Limits) {
	if before.Mem != after.Mem {
		changed.Mem = after.Mem
	}
	if before.CPU != after.CPU {
		changed.CPU = after.CPU
	}
	if before.PIDs != after.PIDs {
		changed.PIDs = after.PIDs
	}
	return changed
}

// openFiles raises the limit of open files; one that is lower is put into force at the end,
// because nobody might be allowed to take that back.
func (r *reloading) openFiles() error {
	before, after := r.old.Limits().OpenFiles, r.next.Limits().OpenFiles
	if before == after {
		return nil
	}
	if err := r.freeze(); err != nil { // a process that is being forked has a copy already
		return err
	}
	change, err := r.g.container.OpenFiles(0, unix.Rlimit{Cur: uint64(after), Max: uint64(after)})
	if err != nil {
		return err
	}
	undo, err := change.Raise()
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: open_files cannot rise from %d to %d: %w: or spawn a new guest for it", errPolicy, before, after, err)
	}
	if err != nil {
		return err
	}
	r.undo.add(undo)
	r.lower = change
	return nil
}

// freeze stops the guest until all parts of the reload have been done.
func (r *reloading) freeze() error {
	if r.frozen {
		return nil
	}
	thaw, err := r.g.container.Freeze()
	if err != nil {
		return err
	}
	r.frozen = true
	r.end = append(r.end, func() {
		if err := thaw(); err != nil && !r.g.hasEnded() {
			r.g.s.opts.Log.WithError(err).WithField("guest", r.g.id).Error("letting a guest go on")
		}
	})
	return nil
}

// notices writes what the guest reads: its host names, and what its agent has to know. A
// guest that may send larger messages must not do so before its client has been told.
func (r *reloading) notices() error {
	files := make(map[string][]byte)
	hosts, err := r.g.attendant.Hosts(r.next)
	if err != nil {
		return err
	}
	// What it says now, not what the old policy would have it say: the proxy remembers the
	// names of a reload that was taken back, too.
	if r.hosts = string(hosts); r.hosts != r.g.hosts {
		files["/etc/hosts"] = hosts
	}
	same := r.old.SameImports(r.next)
	a, b := r.old.Limits(), r.next.Limits()
	if !same || a.Message != b.Message || a.Output != b.Output {
		if files[bundle.ReloadedFile], err = bundle.AgentConfig(r.next); err != nil {
			return err
		}
		if err := r.freeze(); err != nil {
			return err
		}
		r.end = append(r.end, r.g.knock)
	}
	if !same {
		return r.modules(files)
	}
	if len(files) == 0 {
		return nil
	}
	return r.change(container.Change{Files: files})
}

func (r *reloading) endpoints() error {
	if err := r.g.attendant.Update(r.next); err != nil {
		return err
	}
	r.undo.add(func() error { return r.g.attendant.Update(r.old) })
	return nil
}

// knock has the guest's agent look at what was written for it. It looks before it would
// break a limit, too: an agent that is not told breaks none.
func (g *guest) knock() { _ = g.container.Kill(unix.SIGWINCH, false) }

// commit makes the change the guest's policy, and tells: the client hears what it may be
// sent from now on before the guest, if that was frozen, goes on.
func (r *reloading) commit(news news) {
	g := r.g
	if r.lower != nil {
		if err := r.lower.Lower(); err != nil && !g.hasEnded() {
			g.tear(fmt.Errorf("its limit of open files could not be lowered: %w", err))
		}
	}
	g.mu.Lock()
	details := news.details(g.digest, r.digest, r.next.Limits())
	g.policy, g.digest, g.view = r.next, r.digest, r.view.Notes
	g.mu.Unlock()
	g.shown, g.hosts, g.layer = r.view.Shown, r.hosts, r.layer
	g.event(attend.Event{Time: time.Now(), Type: control.Hotload, Details: details})
}
