package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// maxPath is the longest path that can be mounted, in bytes.
const maxPath = unix.PathMax - 1

// plan is the walk of one rule, and what came out of it.
type plan struct {
	rule      shownRule
	deny      denials
	submounts mountList
	entries   *int // directory entries that may still be read, by all rules together
	limit     int  // mounts and directories that the rule may take

	live   bool     // shown whole, because the kernel decides about each path in it
	root   *os.File // the literal directory; the walk opens beneath it, never by path
	shown  part
	hidden hidden
}

// part is what of a directory is shown.
type part struct {
	whole  bool // one mount of the directory shows all of it, and nothing else
	mounts []ViewMount
	dirs   []string
}

// hidden counts what a rule matches and the view leaves out.
type hidden struct{ denied, special, links, mounts, unreadable, odd int }

// run plans the rule: its literal part is a file, a directory, or where to look
// for what the glob matches.
func (p *plan) run() error {
	handle, err := openHandle(p.rule.source)
	if err != nil {
		return p.rule.fail(p.rule.source, "cannot be opened", "", err)
	}
	defer handle.Close()
	kind, err := fileType(handle)
	if err != nil {
		return p.rule.fail(p.rule.source, "cannot be shown", "name regular files or directories", err)
	}
	if p.deny.hidesAbove(p.rule.dest) || p.deny.hidesAbove(p.rule.source) {
		p.hidden.denied++
		return nil
	}
	if kind == unix.S_IFREG {
		if !p.rule.pattern().literal() {
			return p.rule.fail(p.rule.source, "is a file, not a directory", "name the file itself", nil)
		}
		p.shown.mounts = []ViewMount{p.mount("", false)}
		return nil
	}
	p.root, err = openat2(int(handle.Fd()), ".", p.rule.source, unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if err != nil {
		return p.rule.fail(p.rule.source, "cannot be listed", "", err)
	}
	defer p.root.Close()
	if p.rule.pattern().covers(p.rule.dest) {
		p.shown, err = p.tree("")
		if err == nil && p.shown.whole {
			p.shown.mounts = []ViewMount{p.mount("", true)}
		}
		return err
	}
	p.shown, err = p.glob("")
	p.shown.dirs = append(p.shown.dirs, p.rule.dest)
	return err
}

// mount shows the file or directory at rel ("" or "/a/b") below the literal part.
func (p *plan) mount(rel string, dir bool) ViewMount {
	return ViewMount{Source: p.rule.source + rel, Dest: p.rule.dest + rel, Dir: dir, Write: p.rule.Mode == policy.Write}
}

// tree plans a directory of which everything is meant. It is whole unless
// something in it may not be shown: then each part of it is shown by itself.
func (p *plan) tree(rel string) (part, error) {
	names, err := p.list(rel)
	if err != nil {
		return part{}, err
	}
	dest, source := p.rule.dest+rel, p.rule.source+rel
	whole := names != nil && !p.deny.reach(dest, source) && !p.submounts.below(source)
	pieces := part{dirs: []string{dest}}
	var links []string
	for _, entry := range names {
		child := rel + "/" + entry.Name()
		switch kind := p.judge(child, entry.Type()); kind {
		case fs.ModeDir:
			sub, err := p.tree(child)
			if err != nil {
				return part{}, err
			}
			if sub.whole {
				sub.mounts = []ViewMount{p.mount(child, true)}
			}
			whole = whole && sub.whole
			if isText(child) {
				pieces.add(sub)
			}
		case 0:
			if isText(child) {
				pieces.mounts = append(pieces.mounts, p.mount(child, false))
			}
		case fs.ModeSymlink:
			links = append(links, child)
		default:
			whole = false
		}
	}
	if whole {
		return part{whole: true}, nil
	}
	p.follow(links, &pieces)
	p.countOdd(names)
	return pieces, p.bound(pieces)
}

// glob plans a directory of which only what matches is meant.
func (p *plan) glob(rel string) (part, error) {
	names, err := p.list(rel)
	if err != nil {
		return part{}, err
	}
	var out part
	var links []string
	want := p.rule.pattern()
	for _, entry := range names {
		child := rel + "/" + entry.Name()
		dest := p.rule.dest + child
		matches, reaches := want.matches(dest), entry.IsDir() && want.reaches(dest)
		if !matches && !reaches {
			continue
		}
		if !isText(child) {
			p.hidden.odd++
			continue
		}
		switch p.judge(child, entry.Type()) {
		case fs.ModeDir:
			sub, err := p.directory(child, matches, reaches)
			if err != nil {
				return part{}, err
			}
			out.add(sub)
		case 0:
			out.mounts = append(out.mounts, p.mount(child, false))
		case fs.ModeSymlink:
			links = append(links, child)
		}
	}
	p.follow(links, &out)
	return out, p.bound(out)
}

// directory plans one directory that a glob matches or reaches into.
func (p *plan) directory(rel string, matches, reaches bool) (part, error) {
	if p.rule.pattern().covers(p.rule.dest + rel) {
		sub, err := p.tree(rel)
		if sub.whole {
			sub.mounts = []ViewMount{p.mount(rel, true)}
		}
		return sub, err
	}
	var sub part
	var err error
	if reaches {
		sub, err = p.glob(rel)
	}
	if matches {
		sub.dirs = append(sub.dirs, p.rule.dest+rel)
	}
	return sub, err
}

// unshowable is the type of an entry that may not be shown, whatever it is.
const unshowable = fs.ModeIrregular

// judge returns 0 for a regular file, ModeDir, ModeSymlink, or unshowable with
// the reason counted.
func (p *plan) judge(rel string, kind fs.FileMode) fs.FileMode {
	dest, source := p.rule.dest+rel, p.rule.source+rel
	switch {
	case p.deny.hides(dest, source):
		p.hidden.denied++
	case len(dest) > maxPath || len(source) > maxPath:
		p.hidden.odd++
	case p.submounts.at(source):
		p.hidden.mounts++
	case kind == 0 || kind == fs.ModeDir || kind == fs.ModeSymlink:
		return kind
	default:
		p.hidden.special++
	}
	return unshowable
}

// list returns the entries of a directory, sorted; nil for one that cannot be
// read any more, or never could: the guest could not list it either.
func (p *plan) list(rel string) ([]fs.DirEntry, error) {
	source := p.rule.source + rel
	dir, err := openat2(int(p.root.Fd()), "."+rel, source, unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		// Another mount may have appeared, or a link in the place of a directory.
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil && rel == "" {
		return nil, p.rule.fail(source, "cannot be listed", "", err)
	}
	if err != nil {
		p.hidden.unreadable++
		return nil, nil
	}
	defer dir.Close()
	names := []fs.DirEntry{}
	for {
		batch, err := dir.ReadDir(1024)
		names = append(names, batch...)
		if *p.entries -= len(batch); *p.entries < 0 {
			return nil, p.rule.fail(p.rule.source, fmt.Sprintf("holds too much to look through: a policy's rules may take %d directory entries", maxEntries),
				"name a smaller directory", nil)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, p.rule.fail(source, "cannot be listed", "", err)
		}
	}
	sort.Slice(names, func(i, j int) bool { return names[i].Name() < names[j].Name() })
	return names, nil
}

// follow shows the symbolic links that lead to a regular file which the same rule
// shows too. All others are left out: what they lead to is another rule's business.
func (p *plan) follow(links []string, out *part) {
	for _, rel := range links {
		target, ok := p.target(rel)
		if !ok || !isText(rel) {
			p.hidden.links++
			continue
		}
		m := p.mount(rel, false)
		m.Source = p.rule.source + target
		out.mounts = append(out.mounts, m)
	}
}

// target resolves a link beneath the literal directory.
func (p *plan) target(rel string) (string, bool) {
	file, err := openat2(int(p.root.Fd()), "."+rel, p.rule.source+rel, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return "", false
	}
	defer file.Close()
	if kind, err := fileType(file); err != nil || kind != unix.S_IFREG {
		return "", false
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	target, below := strings.CutPrefix(path, p.rule.source+"/")
	if err != nil || !below || !isText(path) {
		return "", false
	}
	target = "/" + target
	dest := p.rule.dest + target
	if !p.rule.pattern().matches(dest) || p.deny.hidesAbove(dest) || p.deny.hidesAbove(path) {
		return "", false
	}
	return target, true
}

// add takes over what a part shows.
func (o *part) add(sub part) {
	o.mounts = append(o.mounts, sub.mounts...)
	o.dirs = append(o.dirs, sub.dirs...)
}

// bound reports a rule that takes too many mounts.
func (p *plan) bound(out part) error {
	if len(out.mounts)+len(out.dirs) <= p.limit {
		return nil
	}
	return p.rule.fail(p.rule.source, fmt.Sprintf("takes more than %d mounts, because it is shown file by file", p.limit),
		"narrow the pattern, or name a directory that holds nothing else (no denied name, FIFO, socket or mount point)", nil)
}

// countOdd counts the names that a configuration cannot carry.
func (p *plan) countOdd(names []fs.DirEntry) {
	for _, entry := range names {
		if !isText(entry.Name()) {
			p.hidden.odd++
		}
	}
}
