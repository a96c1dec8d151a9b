package container

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// GCReport says what GC removed.
type GCReport struct {
	Containers []string `json:"containers"` // ids
	Owners     int      `json:"owners"`     // directories of processes that have gone
	Strays     []string `json:"strays"`     // claims on host ids by no container
	Unseen     []Unseen `json:"unseen"`     // what was left alone, because it could not be seen whether it is garbage
}

// Unseen is a container that has processes and was meant to outlive its creator, and whose state is not
// to be found: it is in another mount namespace, or somebody has removed it.
type Unseen struct{ ID, Root string }

// GC removes what crashed processes left below dir ("" is DefaultRunDir): the
// containers whose creators no longer live, newest first, and then what nobody
// claims. Containers of living processes, and detached ones whose state is there,
// are left alone, and so are those that live where their state cannot be seen. It goes on after an
// error and returns all of them.
func GC(dir string) (GCReport, error) {
	if dir == "" {
		dir = defaultRunDir()
	}
	run := runDir(dir)
	var report GCReport
	items, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return report, nil
	}
	if err != nil {
		return report, fmt.Errorf("collecting garbage: %w", err)
	}
	dead, unseen, err := deadEntries(run, items)
	report.Unseen = unseen
	errs := []error{err}
	var parents []string
	for _, e := range dead {
		if err := e.undo(run); err != nil {
			errs = append(errs, err)
			e.release()
			continue
		}
		if e.ID != "" {
			report.Containers = append(report.Containers, e.ID)
		}
		parents = append(parents, e.commonGroups()...)
	}
	report.Strays, err = sweepIDs(run, items)
	errs = append(errs, err)
	report.Owners, err = sweepOwners(run)
	errs = append(errs, err, run.tidy(parents))
	return report, errors.Join(errs...)
}

// deadEntries takes over the journals of containers that nobody owns and that are
// not meant to be on their own.
func deadEntries(run runDir, items []os.DirEntry) (dead []*entry, unseen []Unseen, err error) {
	var errs []error
	for _, item := range items {
		name := item.Name()
		if at := strings.IndexByte(name, '@'); at <= 0 || item.IsDir() {
			continue
		}
		e, err := takeEntry(filepath.Join(string(run), name))
		switch {
		case errors.Is(err, ErrOwned), errors.Is(err, ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case e.Detached && e.hasState():
			e.release()
		case e.Detached && e.lives(): // state goes after processes
			unseen = append(unseen, Unseen{e.ID, e.Root})
			e.release()
		default:
			dead = append(dead, e)
		}
	}
	slices.SortFunc(dead, func(a, b *entry) int { return cmp.Compare(b.Created.UnixNano(), a.Created.UnixNano()) })
	return dead, unseen, errors.Join(errs...)
}

func (e *entry) hasState() bool {
	_, err := os.Lstat(filepath.Join(e.stateDir(), "state.json"))
	return err == nil
}

// lives reports whether the container has processes, or who attends it is there. In doubt it does.
func (e *entry) lives() bool {
	for _, dir := range e.Cgroups {
		if is, err := occupied(dir); is || err != nil {
			return true
		}
	}
	if e.Attendant == nil {
		return false
	}
	f, err := e.Attendant.open()
	if err == nil {
		_ = f.Close()
	}
	return !errors.Is(err, os.ErrProcessDone)
}

// sweepIDs gives back ids whose journal has gone: their claim is its last link.
func sweepIDs(run runDir, items []os.DirEntry) (strays []string, err error) {
	var errs []error
	for _, item := range items {
		path := filepath.Join(string(run), item.Name())
		var st unix.Stat_t
		if !strings.HasPrefix(item.Name(), "@") || unix.Lstat(path, &st) != nil || st.Nlink > 1 {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("giving host ids back: %w", err))
			continue
		}
		strays = append(strays, path)
	}
	return strays, errors.Join(errs...)
}

// sweepOwners removes the empty directories of owners that no longer live.
func sweepOwners(run runDir) (removed int, err error) {
	items, err := os.ReadDir(run.owners())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	errs := []error{err}
	for _, item := range items {
		o, err := takeOwner(run, filepath.Join(run.owners(), item.Name()))
		if errors.Is(err, ErrOwned) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o.remove() {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}
