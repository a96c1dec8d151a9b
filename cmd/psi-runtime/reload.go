package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/policy"
)

// reloader puts other policies into force in a container that runs, for who attends it.
// All of a policy comes into force, in this order, or what was done is taken back in the
// other order:
//
//	limits       the cgroup's, of what the engine has given; written down with the rest
//	             from here on the container is frozen, if one of the next changes
//	open_files   raised, in every process
//	names        /etc/hosts of a bundle of psi's own; what its agent has to know: imports, message
//	             and output
//	files        mounts of such a bundle, which show what the rules match now, and the size of
//	             its /tmp; of an engine's container, where no LSM programs hold it, which volumes
//	             are read-only, and masks. Nothing that is taken away may be open
//	             modules that the import list hides: in such a bundle the directories with modules
//	             in them are mounted over, in an engine's container files are masked. No directory
//	             of them may be open
//	fs tcp …     the tables of the eBPF programs, the proxy, the clocks; where LSM programs hold
//	             an engine's container, nothing may be open that is taken away
//	state        what state, exec and update go by
//
// Then comes what cannot be taken back and cannot fail but with the kernel: open_files is
// lowered, connections that are now forbidden are cut, POLICY_HOTLOAD is told.
type reloader struct {
	root, id string
	a        *attend.Attendant
	tell     func(attend.Event)
	held     *container.Masks // what is masked in an engine's container; nil: or unknown says why not
	unknown  error
	modules  func() (*engine.Modules, error) // of the root as it was before the container ran
	rootfs   *os.File                        // of a bundle of psi's own

	mu     sync.Mutex // one at a time; guards the fields below
	hosts  string     // what /etc/hosts of a bundle of psi's own says
	seen   bool       // shown says what is mounted in such a bundle; else its specification does
	shown  []view.Shown
	covers container.Covers // of its modules
}

// change handles a request of `policy apply`.
func (r *reloader) change(request control.PolicyChange) (any, error) {
	if request.Untold {
		return r.a.Untold(), nil
	}
	next, err := policy.Parse([]byte(request.Text), request.Source)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// As it is now: it may have been updated, paused or ended since it was made.
	c, err := container.LoadLocked(r.root, r.id, false)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	status, err := c.Status()
	if err != nil {
		return nil, err
	}
	if status == "stopped" {
		return nil, fmt.Errorf("container %s has ended", r.id)
	}
	old, err := engine.ReadRecord(c.Annotations())
	if err != nil || old == nil {
		return nil, errors.Join(err, fmt.Errorf("container %s has no policy", r.id))
	}
	var by engine.Holds
	by.Network, by.Files = r.a.Holds()
	by.Modules = r.modules
	record, err := old.Reload(next, request.Source, by)
	if err != nil {
		return nil, fmt.Errorf("%w: container %s: %w", control.ErrPolicy, r.id, err)
	}
	if request.DryRun {
		return r.differences(old.Policy, next)
	}
	one := reload{reloader: r, c: c, old: old, next: record, still: status == "paused"}
	return struct{}{}, one.run()
}

// differences are the answer to a dry run, as a supervisor gives it.
func (r *reloader) differences(old, next policy.Policy) (any, error) {
	permits, err := policy.Compare(old, next)
	forbids, err2 := policy.Compare(next, old)
	if err := errors.Join(err, err2); err != nil {
		return nil, fmt.Errorf("%w: comparing with the policy of container %s: %w", control.ErrPolicy, r.id, err)
	}
	none := []policy.Difference{} // and not null
	return applied{Changes: []policyChange{{r.id, next.Digest(), append(none, permits...), append(none, forbids...)}}}, nil
}

// reload is one change of policy.
type reload struct {
	*reloader
	c         *container.Container
	old, next *engine.Record
	still     bool                  // the container stands still already
	limited   *specs.LinuxResources // the limits that have changed
	names     string                // what /etc/hosts says from now on
	view      view.Opened           // what is mounted from now on
	undo      []func() error
	end       []func() error // whatever became of it
	lower     *container.OpenFiles
	forbidden *attend.Forbidden
	reserve   []*os.File
}

// spared is how many descriptors are kept for taking back, and for killing.
const spared = 8

// spare makes sure that there will be some, as the first thing that may fail.
func (r *reload) spare() error {
	for range spared {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return fmt.Errorf("reserving descriptors: %w", err)
		}
		r.reserve = append(r.reserve, f)
	}
	return nil
}

// release is for who needs them now.
func (r *reload) release() {
	for _, f := range r.reserve {
		_ = f.Close()
	}
	r.reserve = nil
}

func (r *reload) run() error {
	defer r.release()
	if err := r.spare(); err != nil {
		return fmt.Errorf("reloading container %s: %w", r.id, err)
	}
	defer func() {
		for _, end := range slices.Backward(r.end) {
			if endErr := end(); endErr != nil {
				logrus.WithError(endErr).Error("ending a reload")
			}
		}
	}()
	for _, part := range []struct {
		name   string
		change func() error
	}{
		{"limits", r.limits}, {"open files", r.openFiles}, {"names", r.notices},
		{"files", r.files}, {"rules", r.rules}, {"connections", r.connections}, {"state", r.state},
	} {
		if err := part.change(); err != nil {
			return r.takeBack(fmt.Errorf("reloading the %s of container %s: %w", part.name, r.id, err))
		}
	}
	if err := r.commit(); err != nil {
		return r.kill(fmt.Errorf("container %s was killed, because its new policy could not be put into force: %w", r.id, err))
	}
	return nil
}

// takeBack undoes what was done, newest first. A container of which nobody knows what
// holds it is killed.
func (r *reload) takeBack(cause error) error {
	r.release()
	var errs []error
	for _, undo := range slices.Backward(r.undo) {
		errs = append(errs, undo())
	}
	if errors.Is(cause, container.ErrTorn) {
		errs = append(errs, container.ErrTorn)
	}
	if err := errors.Join(errs...); err != nil {
		return r.kill(fmt.Errorf("%w; container %s was killed, because that could not be taken back: %w", cause, r.id, err))
	}
	return cause
}

func (r *reload) kill(cause error) error {
	r.release()
	logrus.Error(cause)
	return errors.Join(cause, r.c.KillCgroup())
}

// limits changes those of the cgroup.
func (r *reload) limits() error {
	before, after := r.old.Given.Resources(r.old.Policy.Limits()), r.next.Given.Resources(r.next.Policy.Limits())
	forth, back := changedResources(before, after), changedResources(after, before)
	if forth == nil {
		return nil
	}
	if err := r.c.Limit(forth); err != nil {
		return err
	}
	r.limited = forth
	r.undo = append(r.undo, func() error { return r.c.Limit(back) })
	return nil
}

// changedResources are those limits that are new; nil if none is.
func changedResources(before, after *specs.LinuxResources) *specs.LinuxResources {
	out, check := &specs.LinuxResources{}, true
	if !reflect.DeepEqual(before.Memory, after.Memory) {
		out.Memory = after.Memory
		out.Memory.CheckBeforeUpdate = &check // or the kernel kills what is too much
	}
	if !reflect.DeepEqual(before.CPU, after.CPU) {
		out.CPU = after.CPU
	}
	if !reflect.DeepEqual(before.Pids, after.Pids) {
		out.Pids = after.Pids
	}
	if reflect.DeepEqual(*out, specs.LinuxResources{}) {
		return nil
	}
	return out
}

// freeze stops the container until all has been done.
func (r *reload) freeze() error {
	if r.still {
		return nil
	}
	thaw, err := r.c.Freeze()
	if err != nil {
		return err
	}
	r.still = true
	r.end = append(r.end, thaw)
	return nil
}

// openFiles raises the limit; commit lowers it.
func (r *reload) openFiles() error {
	before, after := r.old.Given.OpenFiles(r.old.Policy.Limits()), r.next.Given.OpenFiles(r.next.Policy.Limits())
	if before == after {
		return nil
	}
	if err := r.freeze(); err != nil { // a process that is being forked has a copy already
		return err
	}
	change, err := r.c.OpenFiles(before.Hard, unix.Rlimit{Cur: after.Soft, Max: after.Hard})
	if err != nil {
		return err
	}
	undo, err := change.Raise()
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: open_files cannot rise from %d to %d: %w: or make a new container", control.ErrPolicy, before.Hard, after.Hard, err)
	}
	if err != nil {
		return err
	}
	r.undo = append(r.undo, undo)
	r.lower = change
	return nil
}

// rules puts the tables of programs and proxy into force, and the clocks.
func (r *reload) rules() error {
	old, next := r.old.Policy, r.next.Policy
	files := !slices.Equal(old.FS(), next.FS())
	if files || !slices.Equal(old.Endpoints(), next.Endpoints()) {
		if err := r.freeze(); err != nil {
			return err
		}
	}
	if err := r.a.Update(next); err != nil {
		return err
	}
	r.undo = append(r.undo, func() error { return r.a.Update(old) })
	if _, programs := r.a.Holds(); !files || !programs || r.next.Own { // the mounts have changed
		return nil
	}
	open, err := r.c.Opened()
	if err != nil {
		return err
	}
	for _, f := range open {
		if r.old.TakesAway(r.next, f.Path, engine.Access{Read: f.Read, Write: f.Write}) {
			return heldOpen(f)
		}
	}
	return nil
}

// connections finds those that the policy, which is in force, forbids.
func (r *reload) connections() (err error) {
	if slices.Equal(r.old.Policy.Endpoints(), r.next.Policy.Endpoints()) {
		return nil
	}
	if r.forbidden, err = r.a.Forbidden(len(r.old.Policy.UDP()) > 0); err != nil {
		return err
	}
	r.end = append(r.end, r.forbidden.Close)
	return nil
}

// state writes the policy and its limits down. It is the last that can fail, and so is not
// taken back.
func (r *reload) state() error {
	limit := r.next.Given.OpenFiles(r.next.Policy.Limits())
	notes, err := r.next.Annotations()
	if err != nil {
		return err
	}
	return r.c.Set(container.Settings{Resources: r.limited, Annotations: notes, OpenFiles: &limit})
}

// commit does what cannot be taken back.
func (r *reload) commit() error {
	var errs []error
	if r.lower != nil {
		errs = append(errs, r.lower.Lower())
	}
	if r.forbidden != nil {
		errs = append(errs, r.forbidden.Cut())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.hosts, r.shown = r.names, r.view.Shown
	r.tell(attend.Event{Time: time.Now(), Type: control.Hotload, Details: map[string]any{
		"policy_digest": r.next.Policy.Digest(), "former_digest": r.old.Policy.Digest(), "limits": control.LimitsOf(r.next.Policy.Limits()),
	}})
	return nil
}
