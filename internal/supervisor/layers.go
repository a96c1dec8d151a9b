package supervisor

import (
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// maxLayers is how many layers are kept. A supervisor has few different import lists;
// one that has more begins again.
const maxLayers = 64

// layers keeps, for each root file system and import list, the layer that hides the
// files of all other modules (bundle.HiddenFiles says which). Making one takes some
// milliseconds, using one nothing. They are mounts in the private place: guests keep
// theirs, and all of them end with the supervisor.
type layers struct {
	// inUse is held shared while a guest is made or changed with a layer, and exclusively
	// by who takes layers away.
	inUse sync.RWMutex

	mu   sync.Mutex // guards the fields below, and is held while one is made
	made map[string]layer
	next int
}

// layer is a mount of whiteouts; the zero value hides nothing.
type layer struct {
	mount string   // its directory
	dirs  []string // directories of the root that it hides something in, sorted, none below another
}

// use finds or makes the layer for a policy on a root, which stays there until done is
// called. It is zero for a policy that does not limit imports.
func (l *layers) use(place string, p policy.Policy, r bundle.RootfsInfo) (found layer, done func(), err error) {
	if _, limited := p.Imports(); !limited {
		return layer{}, func() {}, nil
	}
	if err := l.trim(); err != nil {
		return layer{}, nil, err
	}
	l.inUse.RLock()
	if found, err = l.get(place, p, r); err != nil {
		l.inUse.RUnlock()
		return layer{}, nil, err
	}
	return found, l.inUse.RUnlock, nil
}

// get finds or makes a layer.
func (l *layers) get(place string, p policy.Policy, r bundle.RootfsInfo) (layer, error) {
	allowed, _ := p.Imports()
	key := strings.Join(append([]string{r.Path, r.Digest}, allowed...), "\x00")
	l.mu.Lock()
	defer l.mu.Unlock()
	if found, ok := l.made[key]; ok {
		return found, nil
	}
	hidden, err := bundle.HiddenFiles(p, r)
	if err != nil {
		return layer{}, err
	}
	made := layer{mount: filepath.Join(place, "layer-"+strconv.Itoa(l.next)), dirs: bundle.Directories(hidden)}
	l.next++
	if err := container.MountLayer(made.mount, r.Path, hidden); err != nil {
		return layer{}, err
	}
	if l.made == nil {
		l.made = map[string]layer{}
	}
	l.made[key] = made
	return made, nil
}

// trim takes all layers away when there are too many.
func (l *layers) trim() error {
	l.mu.Lock()
	many := len(l.made) >= maxLayers
	l.mu.Unlock()
	if !many {
		return nil
	}
	l.inUse.Lock()
	defer l.inUse.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, made := range l.made {
		if err := container.UnmountLayer(made.mount); err != nil {
			return err
		}
		delete(l.made, key)
	}
	return nil
}
