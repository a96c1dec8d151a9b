package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// files shows the guest what the new policy shows of the host as it is now, so a reload
// of the same policy is how files that came to match a glob since are shown. The guest is
// frozen if anything has to change, until all parts of the reload have been done.
func (r *reloading) files() error {
	g := r.g
	var err error
	if r.view, err = openView(r.next, g.client.peer, g.s.plan); err != nil {
		return err
	}
	r.end = append(r.end, r.view.close)
	change := changeView(g.shown, r.view)
	if before, after := r.old.Limits().Tmp, r.next.Limits().Tmp; before != after {
		change.Tmp = after
	}
	if len(change.Hide)+len(change.Show) == 0 && change.Tmp == 0 {
		return nil
	}
	thaw, err := g.container.Freeze()
	if err != nil {
		return err
	}
	r.end = append(r.end, func() {
		if err := thaw(); err != nil && !g.hasEnded() {
			g.s.opts.Log.WithError(err).WithField("guest", g.id).Error("letting a guest go on")
		}
	})
	return r.change(change)
}

// change applies a change of what the guest sees.
func (r *reloading) change(change container.Change) error {
	who := r.g.client.peer
	change.ClientUID, change.ClientGID = int(who.uid), int(who.gid)
	applied, err := r.g.container.Apply(change)
	if errors.Is(err, container.ErrBusy) {
		return fmt.Errorf("%w: %w: have it close that, or end the guest", errPolicy, err)
	}
	if err != nil {
		return err
	}
	r.end = append(r.end, applied.Keep)
	r.undo.add(applied.Undo)
	return nil
}

// openedView is a view whose sources are open. Unlike those of a spawn they need no place
// of their own: what is mounted is what is open, never a path.
type openedView struct {
	notes []string
	shown []shown
	files []*os.File // of shown, in the same order
}

func (v openedView) close() {
	for _, f := range v.files {
		_ = f.Close()
	}
}

// openView plans what the policy shows of the host and opens it, with the peer's own
// permissions.
func openView(p policy.Policy, who peer, planned func(policy.Policy) (bundle.View, error)) (view openedView, err error) {
	if len(p.FS()) == 0 {
		return view, nil
	}
	err = as(who, func() error {
		plan, err := planned(p)
		if err != nil {
			return fmt.Errorf("%w: %w", errPolicy, err)
		}
		view.notes = plan.Notes
		for _, m := range plan.Mounts {
			file, err := openSource(m, who)
			if err != nil {
				return err
			}
			view.files = append(view.files, file)
			var stat unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
				return &os.PathError{Op: "stat", Path: m.Source, Err: err}
			}
			view.shown = append(view.shown, shown{m, stat.Dev, stat.Ino})
		}
		return nil
	})
	if err != nil {
		view.close()
		return openedView{}, err
	}
	return view, nil
}

// changeView is the way from one view to another. A mount that stays is moved out of the
// way and back when one above it goes or comes: it would keep that one busy, or be
// covered by it.
func changeView(old []shown, next openedView) (change container.Change) {
	before, after := make(map[shown]bool), make(map[shown]bool)
	changed := make(map[string]bool) // places where something goes or comes
	for _, m := range old {
		before[m] = true
	}
	for _, m := range next.shown {
		after[m] = true
		changed[m.Dest] = changed[m.Dest] || !before[m]
	}
	for _, m := range old {
		changed[m.Dest] = changed[m.Dest] || !after[m]
	}
	affected := func(m shown) bool {
		for place := m.Dest; place != "/"; place = path.Dir(place) {
			if changed[place] {
				return true
			}
		}
		return false
	}
	for _, m := range old {
		if affected(m) {
			change.Hide = append(change.Hide, m.Dest)
		}
	}
	for i, m := range next.shown {
		if affected(m) {
			change.Show = append(change.Show, container.LiveMount{Source: next.files[i], Dest: m.Dest, Dir: m.Dir, Write: m.Write})
		}
	}
	return change
}

// sameImports says whether two policies have the same list, or both none.
func sameImports(a, b policy.Policy) bool {
	one, limited := a.Imports()
	other, alsoLimited := b.Imports()
	return limited == alsoLimited && slices.Equal(one, other)
}
