package supervisor

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/pkg/policy"
)

// maxZygotes is how many zygotes are kept.
const maxZygotes = 4

// zygoteGuests is how many guests a zygote makes before another takes its place: what its guests
// share (the layout of their memory, the seed of their hashes) is shared by so many.
const zygoteGuests = 1000

// zygotes keeps a warm interpreter for each root file system in use, and for each list of
// preloads on it. Without one, or where the kernel allows none, guests are made by libcontainer.
type zygotes struct {
	s *Supervisor

	mu     sync.Mutex // guards the fields below
	made   map[string]*zygote
	closed bool
	making sync.WaitGroup
}

// zygote is one, or the attempt.
type zygote struct {
	*container.Zygote           // nil while it starts, or if it cannot
	stderr            *os.File  // what it had to say
	wanted            time.Time // last
	guests            int
	worked            bool // it has made one
	using             sync.WaitGroup
}

func newZygotes(s *Supervisor) *zygotes { return &zygotes{s: s, made: make(map[string]*zygote)} }

// use returns a zygote for a kind of guests, until done is called; nil while there is none. The first
// caller has one started, in the background.
func (z *zygotes) use(k kind) (found *container.Zygote, done func()) {
	k = zygoteKind(k)
	z.mu.Lock()
	defer z.mu.Unlock()
	key := k.key()
	one := z.made[key]
	if z.closed {
		return nil, nil
	}
	if one == nil {
		one = &zygote{}
		z.made[key] = one
		z.making.Go(func() { z.start(one, k) })
	}
	one.wanted = time.Now()
	if one.Zygote == nil {
		return nil, nil
	}
	if one.guests++; one.guests >= zygoteGuests {
		delete(z.made, key)
		z.making.Go(func() { z.end(one) })
	}
	one.using.Add(1)
	return one.Zygote, one.using.Done
}

// start starts a zygote. One that cannot be started stays in the table: it is not tried again.
func (z *zygotes) start(one *zygote, k kind) {
	made, stderr, err := z.s.startZygote(k)
	if err != nil {
		z.s.opts.Log.WithError(err).Warn("guests are made without a zygote")
		return
	}
	z.mu.Lock()
	one.Zygote, one.stderr = made, stderr
	closed := z.closed
	var spare *zygote
	if len(z.made) > maxZygotes {
		spare = z.forgetOldest(one)
	}
	z.mu.Unlock()
	if closed {
		z.end(one)
	}
	if spare != nil {
		z.end(spare)
	}
}

// forgetOldest takes the zygote that was wanted longest ago out of the table.
func (z *zygotes) forgetOldest(but *zygote) (oldest *zygote) {
	name := ""
	for key, one := range z.made {
		if one != but && (oldest == nil || one.wanted.Before(oldest.wanted)) {
			oldest, name = one, key
		}
	}
	delete(z.made, name)
	return oldest
}

// tried notes that a zygote has made a guest, or could not: then it is taken out of use, and
// if it never could, what it loads cannot be forked, and no other one is tried.
func (z *zygotes) tried(k kind, which *container.Zygote, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	key := zygoteKind(k).key()
	one := z.made[key]
	if one == nil || one.Zygote != which {
		return
	}
	if err == nil {
		one.worked = true
		return
	}
	delete(z.made, key)
	if !one.worked {
		z.made[key] = &zygote{wanted: one.wanted}
	}
	z.making.Go(func() { z.end(one) })
}

// end ends a zygote when nobody uses it any more. Its guests go on.
func (z *zygotes) end(one *zygote) {
	if one.Zygote == nil {
		return
	}
	one.using.Wait()
	if err := errors.Join(one.Close(), one.stderr.Close()); err != nil {
		z.s.opts.Log.WithError(err).Warn("ending a zygote")
	}
}

// close ends all zygotes.
func (z *zygotes) close() {
	z.mu.Lock()
	z.closed = true
	all := z.made
	z.made = make(map[string]*zygote)
	z.mu.Unlock()
	for _, one := range all {
		z.end(one)
	}
	z.making.Wait()
}

// zygoteKind is what of a kind a zygote has to know: what it loads, and from which files. A
// guest's list of imports, without preloads, is its own root's affair.
func zygoteKind(k kind) kind {
	p := policy.Defaults()
	if len(k.policy.Preload()) > 0 {
		p = k.policy.Loading()
	}
	return kind{root: k.root, policy: p, digest: p.Digest()}
}

// startZygote starts one: as an agent in every respect, so that its guests are.
func (s *Supervisor) startZygote(k kind) (*container.Zygote, *os.File, error) {
	plan, err := s.planBlank(k)
	if err != nil {
		return nil, nil, err
	}
	l, done, err := s.layers.use(s.place, k.policy, k.root)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	id, err := newID("zygote-")
	if err != nil {
		return nil, nil, err
	}
	stderr, err := bounded()
	if err != nil {
		return nil, nil, err
	}
	z, err := container.StartZygote(container.ZygoteOptions{
		ID: id, Owner: s.owner, Rootfs: k.root.Path, Layer: l.mount, Args: plan.spec.Process.Args, Env: plan.spec.Process.Env, Stderr: stderr,
	})
	if err != nil {
		err = errors.Join(err, errors.New(wordsOn(stderr)), stderr.Close())
		return nil, nil, err
	}
	return z, stderr, nil
}

// zygote is what a guest is forked from, until done is called; nil if it is to be made afresh.
func (s *Supervisor) zygote(g *guest) (found *container.Zygote, done func()) {
	if g.policy.Isolation() != policy.IsolationFresh {
		if found, done = s.zygotes.use(g.kind); found != nil {
			return found, done
		}
	}
	return nil, func() {}
}
