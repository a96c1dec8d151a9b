package supervisor

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// handle runs every request but hello and spawn.
func (s *Supervisor) handle(c *client, r control.Request) (any, error) {
	done := struct{}{}
	switch r.Op {
	case "list":
		return s.list(c), nil
	case "reload":
		return s.reload(c, r)
	case "find":
		_, err := s.mayReload(c, r.Guest)
		return map[string]any{"found": err == nil}, nil
	case "protect":
		return done, c.protect(r.Token)
	case "close", "kill", "report":
		// They crossed with the guest's own end.
		if c.remembers(r.Guest) {
			return done, nil
		}
	}
	g, err := s.find(c, r.Guest)
	if err != nil {
		return nil, err
	}
	switch r.Op {
	case "close":
		return done, g.close(r.Timeout)
	case "kill":
		g.ask(control.CauseClosed, "")
		return done, g.kill()
	case "stats":
		return g.stats()
	case "report":
		g.event(attend.Event{Time: time.Now(), Type: control.Broken, Details: map[string]any{"error": clip(r.Error, maxMessage)}})
		g.ask(control.CauseSupervisor, "broken channel: "+r.Error)
		return done, g.kill()
	}
	return nil, fmt.Errorf("%w: op %q is not handled", errProtocol, r.Op)
}

// list tells about the running guests of the client's uid.
func (s *Supervisor) list(c *client) any {
	type entry struct {
		Guest   string  `json:"guest"`
		Name    string  `json:"name"`
		Digest  string  `json:"policy_digest"`
		Started float64 `json:"started"` // Unix time in seconds
	}
	s.mu.Lock()
	var mine []*guest
	for _, g := range s.guests {
		if g.running && !g.hasEnded() && g.client.peer.uid == c.peer.uid {
			mine = append(mine, g)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(mine, func(a, b *guest) int { return a.started.Compare(b.started) })
	entries := make([]entry, 0, len(mine))
	for _, g := range mine {
		entries = append(entries, entry{g.id, g.name, g.currentDigest(), float64(g.started.UnixMicro()) / 1e6})
	}
	return map[string]any{"guests": entries}
}

func (g *guest) currentPolicy() policy.Policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy
}

func (g *guest) currentDigest() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.digest
}

func (g *guest) stats() (any, error) {
	defer g.use()()
	if g.hasEnded() {
		return nil, fmt.Errorf("guest %s has ended", g.id)
	}
	stats, err := g.container.Stats()
	if err != nil {
		return nil, fmt.Errorf("reading the figures of guest %s: %w", g.id, err)
	}
	return map[string]any{
		"cpu_ms": float64(stats.CPU-g.attendant.Base()) / float64(time.Millisecond), "mem_bytes": stats.Mem, "pids": stats.PIDs,
	}, nil
}

// rootfs decides which root file system a guest gets. A client that is not root gets
// the supervisor's: the files in a root appear inside the guest with the supervisor's
// rights, so a path of the client's choice would show it files it may not read.
func (s *Supervisor) rootfs(who peer, dir string) (bundle.RootfsInfo, error) {
	own := s.opts.Rootfs
	switch {
	case dir == "" && own == "":
		return bundle.RootfsInfo{}, errors.New("no root file system: this supervisor was started without --rootfs and the request names none")
	case dir == "" || filepath.Clean(dir) == filepath.Clean(own):
		return s.root, nil
	case !who.root():
		return bundle.RootfsInfo{}, fmt.Errorf("rootfs %s: %v may only use this supervisor's own (%s); leave rootfs out, or ask root to add it with --rootfs", dir, who, own)
	case !filepath.IsAbs(dir):
		return bundle.RootfsInfo{}, fmt.Errorf("rootfs %s: not an absolute path", dir)
	}
	return bundle.Inspect(dir)
}

// enforced says for each part of the policy which mechanism holds it. The caller
// holds g.mu.
func (g *guest) enforced() []attend.Enforcement {
	list := []attend.Enforcement{
		{Rule: "limits", By: "cgroup, rlimits, mount sizes"},
		{Rule: "system calls", By: "seccomp"},
	}
	if len(g.policy.FS()) > 0 {
		by := "mounts"
		if g.s.files != nil {
			by += ", BPF-LSM"
		}
		list = append(list, attend.Enforcement{Rule: "fs", By: by})
	}
	for _, note := range g.view {
		list = append(list, attend.Enforcement{Rule: "fs", By: note})
	}
	if _, limited := g.policy.Imports(); limited {
		list = append(list, attend.Enforcement{Rule: "imports", By: "files of other modules are not in the root"})
	}
	return append(list, g.attendant.Enforced()...)
}
