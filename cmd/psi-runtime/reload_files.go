package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
	"github.com/psi-runtime/psi/internal/view"
	"github.com/psi-runtime/psi/pkg/bundle"
)

// notices writes what a bundle of psi's own reads: the names that it connects to, into its
// /etc/hosts, and what its agent has to know.
func (r *reload) notices() error {
	if !r.next.Own {
		return nil
	}
	hosts, err := r.a.Hosts(r.next.Policy)
	if err != nil {
		return err
	}
	files := make(map[string][]byte)
	// What it says now, not what the old policy would have it say: the proxy remembers the
	// names of a change that was taken back, too.
	if r.names = string(hosts); r.names != r.hosts {
		files["/etc/hosts"] = hosts
	}
	before, after := r.old.Policy.Limits(), r.next.Policy.Limits()
	if before.Message != after.Message || before.Output != after.Output || !r.old.Policy.SameImports(r.next.Policy) {
		if files[bundle.ReloadedFile], err = bundle.AgentConfig(r.next.Policy); err != nil {
			return err
		}
		if err := r.freeze(); err != nil {
			return err
		}
		r.end = append(r.end, func() error { _ = r.c.Kill(unix.SIGWINCH, false); return nil }) // or it looks later
	}
	if len(files) == 0 {
		return nil
	}
	return r.apply(container.Change{Files: files})
}

// files shows a bundle of psi's own what the policy shows of the host as it is now: so the same
// policy once more is how files that came to match a glob since are shown.
func (r *reload) files() (err error) {
	if !r.next.Own {
		return r.masks()
	}
	if !r.seen {
		if err := r.freeze(); err != nil { // or it moves one while the next is looked at
			return err
		}
		if r.shown, err = view.Made(r.c); err != nil {
			return err
		}
		r.seen = true
	}
	if r.view, err = view.Open(r.next.Policy, view.Identity{}, bundle.PlanView); err != nil {
		return err
	}
	defer r.view.Close()
	change := r.view.From(r.shown)
	if before, after := r.old.Policy.Limits().Tmp, r.next.Policy.Limits().Tmp; before != after {
		change.Tmp = after
	}
	modules := !slices.Equal(r.old.Files.Modules, r.next.Files.Modules)
	if len(change.Hide)+len(change.Show) == 0 && change.Tmp == 0 && !modules {
		return nil
	}
	if err := r.freeze(); err != nil {
		return err
	}
	if modules {
		var done func() error
		if done, err = r.coverModules(&change); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done()) }()
	}
	return r.apply(change)
}

// coverModules has a change show the directories of modules without those that the import list
// hides.
func (r *reload) coverModules(change *container.Change) (done func() error, err error) {
	files := slices.Concat(r.old.Files.Modules, r.next.Files.Modules)
	for _, dir := range r.covers.Dirs() {
		files = append(files, filepath.Join("/", dir, "x"))
	}
	dirs := bundle.Directories(files)
	if err := r.unheld(dirs); err != nil {
		return nil, err
	}
	for i, dir := range dirs {
		dirs[i] = dir[1:]
	}
	hidden := make([]string, len(r.next.Files.Modules))
	for i, name := range r.next.Files.Modules {
		hidden[i] = name[1:]
	}
	if change.Cover, done, err = r.c.LayerOver(r.rootfs, hidden, dirs); err == nil {
		change.Cover.Over = &r.covers
	}
	return done, err
}

// unheld refuses to hide something of directories that a process could reach in another way.
func (r *reload) unheld(dirs []string) error {
	err := r.c.Unheld(dirs)
	if errors.Is(err, container.ErrBusy) {
		err = fmt.Errorf("%w: imports: %w: have it close or receive that, or end the container", control.ErrPolicy, err)
	}
	return err
}

// apply makes a change of what the container sees.
func (r *reload) apply(change container.Change) error {
	return r.applied(r.c.Apply(change))
}

// masks has the mounts of an engine's container hold its import list, and its rules where no LSM
// programs do.
func (r *reload) masks() error {
	_, programs := r.a.Holds()
	rules := !programs && !slices.Equal(r.old.Policy.FS(), r.next.Policy.FS())
	if !rules && slices.Equal(r.old.Files.Modules, r.next.Files.Modules) {
		return nil
	}
	if r.held == nil {
		return fmt.Errorf("what masks its files could not be told when it was made: make a new container: %w", r.unknown)
	}
	if err := r.freeze(); err != nil {
		return err
	}
	remounting := r.old.Remounting(r.next)
	if len(remounting.Hidden) > 0 {
		if err := r.unheld(remounting.Hidden); err != nil {
			return err
		}
	}
	open, err := r.c.Held()
	if err != nil {
		return err
	}
	for _, f := range open {
		if remounting.Hides(f.Path, engine.Access{Read: f.Read, Write: f.Write}) {
			return heldOpen(f)
		}
	}
	change := container.Remask{ReadOnly: remounting.ReadOnly, Unmask: remounting.Unmask}
	for _, m := range remounting.Masks {
		change.Masks = append(change.Masks, container.MaskedPath{Path: m.Path, Volume: m.Volume, Must: m.New && m.Volume != "" && !m.Inside})
	}
	return r.applied(r.held.Apply(change))
}

// heldOpen is the error for what a process has open and is to be taken from it.
func heldOpen(f container.OpenedFile) error {
	return fmt.Errorf("%w: process %d has %q open, which the policy takes away: have it close that, or end the container", control.ErrPolicy, f.PID, f.Path)
}

// applied is for what was changed of what the container sees.
func (r *reload) applied(applied *container.Applied, err error) error {
	if errors.Is(err, container.ErrBusy) {
		return fmt.Errorf("%w: %w: have it close that, or end the container", control.ErrPolicy, err)
	}
	if err != nil {
		return err
	}
	r.end = append(r.end, func() error { applied.Keep(); return nil })
	r.undo = append(r.undo, applied.Undo)
	return nil
}
