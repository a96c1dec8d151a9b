// Package install makes psi-runtime known to container engines: it plans the change of an engine's
// configuration file as data, shows it as a diff, and applies it with a backup beside the file.
//
//	engine      file                                      what is put there
//	containerd  /etc/containerd/config.toml               a marked block: the runtime class psi of CRI
//	podman      /etc/containers/containers.conf.d/psi.conf a file of our own: the runtime psi
//	crio        /etc/crio/crio.conf.d/50-psi.conf          a file of our own: the runtime class psi
//	docker      /etc/docker/daemon.json                   an entry of "runtimes"
//
// Planning twice gives an empty second change. A removal takes out what we put in and nothing else;
// where nobody else changed the file since, that is the file as it was, byte for byte. Engines are not
// restarted: that is their owner's decision.
package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Engine names a container engine.
type Engine string

// The engines whose configuration is known.
const (
	Containerd Engine = "containerd"
	Podman     Engine = "podman"
	CRIO       Engine = "crio"
	Docker     Engine = "docker"
)

// Class is the name that engines get for psi-runtime.
const Class = "psi"

// Engines are all of them, in the order in which they are shown.
func Engines() []Engine { return []Engine{Containerd, Podman, CRIO, Docker} }

// Options say what to install.
type Options struct {
	Engine  Engine
	Path    string // of the configuration file; "" is the engine's usual one
	Runtime string // absolute path of psi-runtime; not used by Uninstall
}

// format is how one engine's configuration is written.
type format struct {
	path    string // the usual one
	restart string // what makes the engine read it
	add     func(before []byte, runtime string) ([]byte, error)
	remove  func(before []byte) ([]byte, error) // nil result: the file goes
}

func formatOf(e Engine) (format, error) {
	switch e {
	case Containerd:
		return format{"/etc/containerd/config.toml", "systemctl restart containerd", addContainerd, removeBlock}, nil
	case Podman:
		return format{"/etc/containers/containers.conf.d/psi.conf", "nothing: podman reads it at every call", ownFile(podmanFile), removeOwnFile}, nil
	case CRIO:
		return format{"/etc/crio/crio.conf.d/50-psi.conf", "systemctl restart crio", ownFile(crioFile), removeOwnFile}, nil
	case Docker:
		return format{"/etc/docker/daemon.json", "systemctl reload docker", addDocker, removeDocker}, nil
	}
	return format{}, fmt.Errorf("engine %q: it is one of %v", e, Engines())
}

// Install plans what makes psi-runtime known to an engine.
func Install(o Options) (Change, error) {
	f, err := formatOf(o.Engine)
	if err != nil {
		return Change{}, err
	}
	if !filepath.IsAbs(o.Runtime) {
		return Change{}, fmt.Errorf("the runtime %q: engines need its absolute path", o.Runtime)
	}
	info, err := os.Stat(o.Runtime)
	if err != nil {
		return Change{}, fmt.Errorf("the runtime: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return Change{}, fmt.Errorf("the runtime %s is not a program", o.Runtime)
	}
	c, err := current(o, f)
	if err != nil {
		return Change{}, err
	}
	if c.After, err = f.add(c.Before, o.Runtime); err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	return c, nil
}

// Uninstall plans what makes an engine forget psi-runtime again.
func Uninstall(o Options) (Change, error) {
	f, err := formatOf(o.Engine)
	if err != nil {
		return Change{}, err
	}
	c, err := current(o, f)
	if err != nil || c.Before == nil {
		return c, err
	}
	c.removal = true
	if c.After, err = f.remove(c.Before); err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	if slices.Equal(c.After, c.Before) {
		return c, nil
	}
	return c.restored(f)
}

// current reads the file that a change is about.
func current(o Options, f format) (Change, error) {
	c := Change{Path: o.Path, Restart: f.restart}
	if c.Path == "" {
		c.Path = f.path
	}
	path, err := filepath.EvalSymlinks(c.Path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return Change{}, fmt.Errorf("finding the configuration: %w", err)
	}
	c.Path = path
	if c.Before, err = os.ReadFile(path); err != nil {
		return Change{}, fmt.Errorf("reading the configuration: %w", err)
	}
	if c.Before == nil {
		c.Before = []byte{} // an empty file is one all the same
	}
	return c, nil
}
