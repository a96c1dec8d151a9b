package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Effective is the policy of one sandbox once its parents, the defaults and its
// variables are put together, with the place that each part came from.
type Effective struct {
	Sandbox string // its name; "" in a document with a single body
	Policy  Policy
	Origins []Origin // in the order of the keys; a list has one for each entry
}

// Origin says where one value of a policy was written.
type Origin struct {
	Key          string
	Value        string // as messages write it: "256MiB", "read /srv/data", "deny 10.0.0.1:80"
	From         string // "built in", "defaults", "sandbox base", "document"
	Source       string // the document; "" for what is built in
	Line, Column int
}

// String formats as "mem: 256MiB (sandbox base, policy.yml:5:10)".
func (o Origin) String() string {
	if o.Line == 0 {
		return fmt.Sprintf("%s: %s (%s)", o.Key, o.Value, o.From)
	}
	return fmt.Sprintf("%s: %s (%s, %s:%d:%d)", o.Key, o.Value, o.From, o.Source, o.Line, o.Column)
}

// Resolve returns the policy of one sandbox. Errors are [*Error]s: an unknown or
// missing name, variables that are missing, too many or not valid.
//
// A sandbox begins with what its parent comes to, or with the defaults. Limits
// and switches replace the inherited value; fs, tcp and imports add to it. What
// is denied anywhere on the way stays denied, and read_only: true stays true.
// A parent is always a sandbox of the same document, so that whoever reads the
// document sees all that a sandbox may do.
func (d *Document) Resolve(choice Choice) (Effective, error) {
	s, err := d.choose(choice.Sandbox)
	if err != nil {
		return Effective{}, err
	}
	v := &variables{values: choice.Variables, used: make(map[string]bool)}
	r := d.resolved
	if r == nil {
		r = d.resolver(v)
	}
	found := r.resolve(s)
	if len(r.errs) > 0 {
		locate(d.data, r.errs)
		return Effective{}, r.errs[0]
	}
	if err := v.check(); err != nil {
		err.Source = d.source
		return Effective{}, err
	}
	return Effective{Sandbox: s.name, Policy: found.policy, Origins: arrange(found.policy, found.origins)}, nil
}

// resolver puts sandboxes together, each once.
type resolver struct {
	document  *Document
	variables *variables
	defaults  *reader
	done      map[*sandbox]*reader
	open      []*sandbox // those whose parents are being resolved
	errs      []*Error
	notes     []Note
}

func (d *Document) resolver(v *variables) *resolver {
	return &resolver{document: d, variables: v, done: make(map[*sandbox]*reader)}
}

// base returns a reader that has read the defaults.
func (r *resolver) base() *reader {
	if r.defaults != nil {
		return r.defaults
	}
	d := r.document
	start := &reader{source: d.source, pyisolate: d.pyisolate, from: "defaults", variables: r.variables, policy: Defaults()}
	// PyIsolate permits no module that is not listed.
	start.policy.importsLimited = d.pyisolate
	if d.defaults != nil {
		start.body(d.defaults)
		r.took(start)
	}
	r.defaults = start
	return start
}

// resolve returns a reader that has read everything that s consists of.
func (r *resolver) resolve(s *sandbox) *reader {
	if found := r.done[s]; found != nil {
		return found
	}
	r.open = append(r.open, s)
	parent := r.parent(s)
	r.open = r.open[:len(r.open)-1]

	own := &reader{source: parent.source, pyisolate: parent.pyisolate, variables: r.variables, policy: parent.policy,
		from: "document", origins: slices.Clip(parent.origins)}
	// The lists grow in place, and the parent's belong to its other children too.
	own.policy.fs, own.policy.tcp, own.policy.udp = slices.Clip(own.policy.fs), own.policy.tcp.clone(), own.policy.udp.clone()
	own.policy.expose, own.policy.imports = slices.Clone(own.policy.expose), slices.Clone(own.policy.imports)
	own.policy.preload = slices.Clone(own.policy.preload)
	structure := []string{"version"}
	if s.name != "" {
		own.from, structure = "sandbox "+s.name, []string{"extends"}
	}
	own.body(s.body, structure...)
	if err := own.policy.checkDocument(); err != nil && len(own.errs) == 0 {
		err.Source = own.source
		if s.name != "" {
			err = err.in(own.source, err.Key, s.at)
		}
		own.fail(err)
	}
	r.took(own)
	r.done[s] = own
	return own
}

// took collects what a reader found out.
func (r *resolver) took(from *reader) {
	r.errs, r.notes = append(r.errs, from.errs...), append(r.notes, from.notes...)
}

// parent returns what s begins with.
func (r *resolver) parent(s *sandbox) *reader {
	if s.extends == nil {
		return r.base()
	}
	name := s.extends.text
	names := r.document.Names()
	at := slices.IndexFunc(r.document.sandboxes, func(other *sandbox) bool { return other.name == name })
	if at < 0 {
		others := slices.DeleteFunc(names, func(other string) bool { return other == s.name })
		e := &Error{Value: name, Rule: "is not a sandbox of this document", WayOut: "there is no other", Nearest: nearest(name, others)}
		if len(others) > 0 {
			e.WayOut = "the others are " + strings.Join(others, ", ")
		}
		if slices.Contains(Names(), name) {
			e.Rule, e.Nearest = "is a built-in policy, not a sandbox of this document", ""
			e.WayOut = "copy what it says into a sandbox here: psi-runtime policy show --text " + name
		}
		r.errs = append(r.errs, e.in(r.document.source, "extends", s.extends))
		return r.base()
	}
	parent := r.document.sandboxes[at]
	if start := slices.Index(r.open, parent); start >= 0 {
		var circle []string
		for _, on := range r.open[start:] {
			circle = append(circle, on.name)
		}
		r.errs = append(r.errs, (&Error{Value: name, Rule: "extends itself: " + strings.Join(append(circle, name), " → "),
			WayOut: "remove extends: from one of them"}).in(r.document.source, "extends", s.extends))
		return r.base()
	}
	return r.resolve(parent)
}

// set records where a value comes from; the last one of a key counts, and the
// first of each entry of a list.
func (r *reader) set(key, value string, n *node) {
	r.origins = append(r.origins, r.origin(key, value, n))
}

func (r *reader) origin(key, value string, n *node) Origin {
	return Origin{Key: key, Value: value, From: r.from, Source: r.source, Line: n.line, Column: n.column}
}

// arrange orders the origins by key and adds those of what nobody wrote.
func arrange(p Policy, written []Origin) []Origin {
	var all []Origin
	builtin := func(key, value string) { all = append(all, Origin{Key: key, Value: value, From: "built in"}) }
	limits := p.Limits()
	for _, key := range displayKeys() {
		own := ofKey(key, written)
		all = append(all, own...)
		if len(own) > 0 {
			continue
		}
		switch key {
		case "fs", "tcp", "udp", "expose":
			builtin(key, "none")
		case "imports":
			value := "every module"
			if p.importsLimited {
				value = noModule
			}
			builtin(key, value)
		case "read_only", "allow_degraded":
			builtin(key, "false")
		case "cpu":
			builtin(key, strconv.FormatFloat(limits.CPU, 'g', -1, 64))
		}
		for _, k := range limitTable() {
			if k.key == key {
				builtin(key, k.format(k.get(&limits)))
			}
		}
	}
	return all
}

// ofKey returns the origins of one key that count.
func ofKey(key string, written []Origin) []Origin {
	list := key == "fs" || key == "tcp" || key == "udp" || key == "expose" || key == "imports"
	var own []Origin
	seen := make(map[string]bool)
	for _, o := range written {
		switch {
		case o.Key != key, seen[o.Value] && list:
			continue
		case !list, len(own) == 1 && own[0].Value == noModule:
			own = own[:0]
		}
		seen[o.Value] = true
		if o.Value != noModule || len(own) == 0 {
			own = append(own, o)
		}
	}
	return own
}

// noModule is what the origin of an empty list of imports says.
const noModule = "no module"

// displayKeys lists the keys in the order in which people read a policy.
func displayKeys() []string {
	return []string{"mem", "cpu", "cpu_ms", "wall_ms", "pids", "open_files", "tmp", "message", "output", "net_conns", "net_rate", "net_bytes",
		"read_only", "fs", "tcp", "udp", "expose", "imports", "preload", "seccomp", "isolation", "allow_degraded"}
}

// sortErrors orders errors by their place.
func sortErrors(errs []*Error) {
	slices.SortStableFunc(errs, func(a, b *Error) int { return cmp.Or(a.Line-b.Line, a.Column-b.Column) })
}
