package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/policy"
)

// files shows the guest what the new policy shows of the host as it is now, so a reload
// of the same policy is how files that came to match a glob since are shown. The guest is
// frozen if anything has to change, until all parts of the reload have been done.
func (r *reloading) files() error {
	g := r.g
	g.reloads++
	view, err := pinView(r.next, g.client.peer, filepath.Join(g.s.place, fmt.Sprintf("%s-%d", g.id, g.reloads)))
	if err != nil {
		return err
	}
	r.end = append(r.end, func() { g.s.releaseView(view) })
	r.view = view
	change, handles, err := changeView(g.shown, view)
	r.end = append(r.end, func() { closeFiles(handles) })
	if err != nil {
		return err
	}
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

// changeView is the way from one view to another. A mount that stays is moved out of the
// way and back when one above it goes or comes: it would keep that one busy, or be
// covered by it.
func changeView(old []shown, next pinnedView) (change container.Change, handles []*os.File, err error) {
	var changed []string // places where something goes or comes
	for _, m := range old {
		if !slices.Contains(next.shown, m) {
			changed = append(changed, m.Dest)
		}
	}
	for _, m := range next.shown {
		if !slices.Contains(old, m) {
			changed = append(changed, m.Dest)
		}
	}
	affected := func(m shown) bool {
		return slices.ContainsFunc(changed, func(place string) bool {
			return m.Dest == place || strings.HasPrefix(m.Dest, place+"/")
		})
	}
	for _, m := range old {
		if affected(m) {
			change.Hide = append(change.Hide, m.Dest)
		}
	}
	for i, m := range next.shown {
		if !affected(m) {
			continue
		}
		handle, err := os.OpenFile(next.Mounts[i].Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return change, handles, fmt.Errorf("opening what is to be shown at %s: %w", m.Dest, err)
		}
		handles = append(handles, handle)
		change.Show = append(change.Show, container.LiveMount{Source: handle, Dest: m.Dest, Dir: m.Dir, Write: m.Write})
	}
	return change, handles, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// sameImports says whether two policies have the same list, or both none.
func sameImports(a, b policy.Policy) bool {
	one, limited := a.Imports()
	other, alsoLimited := b.Imports()
	return limited == alsoLimited && slices.Equal(one, other)
}
