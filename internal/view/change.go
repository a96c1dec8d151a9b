package view

import (
	"path"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/bundle"
)

// Made is the view that a container of psi's own was made with. What somebody has put at the
// paths of the host since is another thing, and so it differs from any view that is opened now.
func Made(c *container.Container) (made []Shown, err error) {
	mounts, err := c.HostMounts()
	for _, m := range mounts {
		made = append(made, Shown{bundle.ViewMount{Source: m.Source, Dest: m.Dest, Dir: m.Dir, Write: m.Write}, m.Dev, m.Ino})
	}
	return made, err
}

// From is the way from an earlier view, of which nothing has to be open, to this one. A mount that stays is moved out of the
// way and back when one above it goes or comes: it would keep that one busy, or be
// covered by it.
func (v Opened) From(old []Shown) (change container.Change) {
	before, after := make(map[Shown]bool), make(map[Shown]bool)
	changed := make(map[string]bool) // places where something goes or comes
	for _, m := range old {
		before[m] = true
	}
	for _, m := range v.Shown {
		after[m] = true
		changed[m.Dest] = changed[m.Dest] || !before[m]
	}
	for _, m := range old {
		changed[m.Dest] = changed[m.Dest] || !after[m]
	}
	affected := func(m Shown) bool {
		for place := m.Dest; place != "/"; place = path.Dir(place) {
			if changed[place] {
				return true
			}
		}
		return false
	}
	for _, m := range old {
		if affected(m) {
			change.Hide = append(change.Hide, container.HiddenMount{Dest: m.Dest, Write: m.Write, Dev: m.Dev, Ino: m.Ino})
		}
	}
	for i, m := range v.Shown {
		if affected(m) {
			change.Show = append(change.Show, container.LiveMount{Source: v.files[i], Dest: m.Dest, Dir: m.Dir, Write: m.Write})
		}
	}
	return change
}
