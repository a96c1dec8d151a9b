package supervisor

import (
	"errors"
	"fmt"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// files shows the guest what the new policy shows of the host as it is now, so a reload
// of the same policy is how files that came to match a glob since are shown. The guest is
// frozen if anything has to change, until all parts of the reload have been done.
func (r *reloading) files() error {
	g := r.g
	var err error
	if r.view, err = view.Open(r.next, g.client.peer.identity(), g.s.plan); err != nil {
		return err
	}
	r.end = append(r.end, r.view.Close)
	change := r.view.From(g.shown)
	if before, after := r.old.Limits().Tmp, r.next.Limits().Tmp; before != after {
		change.Tmp = after
	}
	if len(change.Hide)+len(change.Show) == 0 && change.Tmp == 0 {
		return nil
	}
	if err := r.freeze(); err != nil {
		return err
	}
	return r.change(change)
}

// fresh is files, and what else is written into the root, for a guest that has done nothing
// yet and so needs no freezing.
func (r *reloading) fresh() error {
	change := r.view.From(nil)
	change.Files = attend.RootFiles(r.next)
	r.hosts = string(change.Files["/etc/hosts"])
	for name, data := range attend.RootFiles(r.old) {
		if string(change.Files[name]) == string(data) {
			delete(change.Files, name)
		}
	}
	if before, after := r.old.Limits().Tmp, r.next.Limits().Tmp; before != after {
		change.Tmp = after
	}
	if len(change.Show)+len(change.Files) == 0 && change.Tmp == 0 {
		return nil
	}
	return r.change(change)
}

// change applies a change of what the guest sees.
func (r *reloading) change(change container.Change) error {
	who := r.g.client.peer
	change.ClientUID, change.ClientGID = int(who.uid), int(who.gid)
	applied, err := r.g.container.Apply(change)
	if err := busy(err); err != nil {
		return err
	}
	r.end = append(r.end, applied.Keep)
	r.undo.add(applied.Undo)
	return nil
}

// busy says what to do about what a guest has open.
func busy(err error) error {
	if errors.Is(err, container.ErrBusy) {
		err = fmt.Errorf("%w: %w: have it close that, or end the guest", errPolicy, err)
	}
	return err
}

// plan finds out what a policy's file rules show: whole directories where the kernel
// decides about each path in them.
func (s *Supervisor) plan(p policy.Policy) (bundle.View, error) {
	if s.files != nil {
		return bundle.PlanLive(p)
	}
	return bundle.PlanView(p)
}
