package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// Holds is what holds a container that runs, beside what it was made with.
type Holds struct {
	Network error // why eBPF programs do not hold its network rules; nil if they do
	Files   bool  // LSM programs hold its file rules
	// Modules are those of its root as it was before it ran. It is called when a list of
	// imports is to be another one.
	Modules func() (*Modules, error)
}

// cannot is the error for a rule that a container which runs cannot be given.
func cannot(rule, why string, args ...any) error {
	return fmt.Errorf("%s: it cannot change in a running container: %s, or make a new container", rule, fmt.Sprintf(why, args...))
}

// fixed are the keys of a policy that cannot change to next while a container runs, and why.
func (r *Record) fixed(next policy.Policy) map[string]string {
	const agent = "its agent was told when it began"
	why := map[string]string{
		"allow_degraded": "what the host cannot hold was settled when it was made",
		"read_only":      "its root was mounted when it was made",
		"tmp":            "its /tmp was mounted when it was made",
		"seccomp":        "its filter of system calls is for life",
		"message":        agent, "output": agent,
		"preload": "its interpreter has begun", "isolation": "its interpreter has begun",
	}
	if r.Own {
		delete(why, "message")
		delete(why, "output")
	}
	_, limited := r.Policy.Imports()
	if _, limits := next.Imports(); !limited {
		why["imports"] = "what may import everything has done so"
	} else if r.Own && !limits {
		why["imports"] = "its root has the files of the list that the bundle was compiled with"
	}
	if r.Own && r.Policy.Limits().Tmp > 0 && next.Limits().Tmp > 0 { // one that cannot be written stays so
		delete(why, "tmp")
	}
	return why
}

// Reload is the record of a container that runs once next is in force: a pure decision,
// which makes no change. What an annotation cannot do when a container is made a later
// policy cannot do either. The error names the keys that cannot change, or the first rule
// that nothing would hold. source says in messages where next comes from.
func (r *Record) Reload(next policy.Policy, source string, by Holds) (*Record, error) {
	if err := within(next, source, r.Made.Bounds); err != nil {
		return nil, err
	}
	if err := r.checkFixed(next); err != nil {
		return nil, err
	}
	out := *r
	out.Policy = next
	if r.Own {
		return r.reloadOwn(&out, by)
	}
	n := &narrowing{policy: next, host: Host{Network: by.Network}, running: true}
	if err := r.reloadImports(n, &out, by); err != nil {
		return nil, err
	}
	files := !slices.Equal(r.Policy.FS(), next.FS())
	if err := n.network(); err != nil {
		return nil, err
	}
	switch {
	case files && !by.Files:
		if err := r.remount(n, &out); err != nil {
			return nil, err
		}
	case files:
		if err := r.checkFiles(next); err != nil {
			return nil, err
		}
		out.Files.Needed = true
		for _, rule := range next.FS() {
			n.holds(text(rule), "%s", r.holder(rule))
		}
	default:
		n.out.Enforced = append(n.out.Enforced, keyed(r.Enforced, "fs")...)
	}
	limits := next.Limits()
	n.limits(r.Given.Resources(limits))
	n.openFiles(r.Given.OpenFiles(limits))
	live := []string{"fs", "imports", "mem", "cpu", "pids", "open_files", "cpu_ms", "wall_ms", "tcp", "udp", "expose", "net_conns", "net_rate", "net_bytes"}
	kept := slices.DeleteFunc(slices.Clone(r.Enforced), func(e Enforcement) bool { return slices.Contains(live, keyOf(e)) })
	out.Enforced = slices.Concat(n.out.Enforced, kept)
	return &out, nil
}

// keyOf is the key of a policy that a report's entry is about.
func keyOf(e Enforcement) string {
	key, _, _ := strings.Cut(e.Rule, ":")
	return key
}

// keyed are those of a report that are about a key.
func keyed(report []Enforcement, key string) []Enforcement {
	return slices.DeleteFunc(slices.Clone(report), func(e Enforcement) bool { return keyOf(e) != key })
}

// checkFixed names every key that differs and may not.
func (r *Record) checkFixed(next policy.Policy) error {
	before, after, err := keys(r.Policy, next)
	if err != nil {
		return err
	}
	var errs []error
	why := r.fixed(next)
	for _, key := range slices.Sorted(maps.Keys(why)) {
		if !bytes.Equal(before[key], after[key]) {
			errs = append(errs, fmt.Errorf("%s cannot change in a running container, from %s to %s: %s", key, value(before[key]), value(after[key]), why[key]))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: keep what it has, or make a new container", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// keys are the canonical values of two policies.
func keys(old, next policy.Policy) (before, after map[string]json.RawMessage, err error) {
	return before, after, errors.Join(json.Unmarshal(old.Canonical(), &before), json.Unmarshal(next.Canonical(), &after))
}

// value shows a canonical value in a message.
func value(text json.RawMessage) string {
	const most = 60
	switch {
	case text == nil:
		return "nothing"
	case len(text) > most:
		return string(text[:most]) + "…"
	}
	return string(text)
}

// reloadOwn is Reload for a bundle of psi's own, which has its filter and network from the
// policy that it was made with, and its mounts from the one in force.
func (r *Record) reloadOwn(out *Record, by Holds) (*Record, error) {
	made, next := r.Made.Policy, out.Policy
	wildcards := func(p policy.Policy) bool {
		return slices.ContainsFunc(p.Endpoints(), func(e policy.Endpoint) bool { return e.IsWildcard() && !e.Deny })
	}
	switch {
	case len(next.UDP()) > 0 && len(made.UDP()) == 0:
		return nil, cannot("udp", "its seccomp filter knows no datagrams: leave it out")
	case len(next.Expose()) > 0 && len(made.Expose()) == 0:
		return nil, cannot("expose", "its seccomp filter lets it listen nowhere: leave it out")
	case wildcards(next) && !wildcards(made):
		return nil, cannot("tcp", "it has no name server for wildcards in its /etc/resolv.conf, which was written before it started: allow the names themselves")
	}
	if err := r.reloadImports(&narrowing{policy: next}, out, by); err != nil {
		return nil, err
	}
	out.Enforced = Own(next, by, r.Made.Pairs)
	for i, e := range out.Enforced {
		switch keyOf(e) {
		case "fs":
			out.Enforced[i].By = strings.Replace(e.By, "the bundle was", "the policy came", 1)
		case "imports":
			if out.Files.Modules != nil {
				out.Enforced[i].By = fmt.Sprintf("files of the root, of which %d are hidden; the guest's agent", len(out.Files.Modules))
			}
		}
	}
	return out, nil
}

// noMoreFiles refuses a policy that opens files which the one that the container was made
// with does not: its Landlock domain is for life.
func noMoreFiles(made, next policy.Policy) error {
	more, err := policy.Compare(made, next)
	if err != nil {
		return fmt.Errorf("comparing with the policy that the container was made with: %w", err)
	}
	for _, d := range more {
		if d.Key == "fs" {
			return cannot(d.String(), "its Landlock domain opens what the policy that it was made with allows: allow no more")
		}
	}
	return nil
}

// checkFiles refuses rules that LSM programs cannot hold with the mounts that there are.
func (r *Record) checkFiles(next policy.Policy) error {
	made := r.Made.Policy
	if r.Confine.Domain != nil {
		if err := noMoreFiles(made, next); err != nil {
			return err
		}
	}
	for _, rule := range made.FS() {
		denies := func(other policy.FSRule) bool { return other.Mode == policy.Deny && other.Matches(rule.Pattern) }
		if masked(rule) && !slices.ContainsFunc(next.FS(), denies) {
			return cannot(text(rule), "it is a masked path, for life: keep the rule")
		}
	}
	for _, v := range r.Files.Volumes {
		if v.Source != v.Destination && !slices.Equal(about(v, made), about(v, next)) {
			return cannot("fs", "a rule is about %s, which is mounted elsewhere, at %s, so that paths tell nothing: keep the rules about both", v.Source, v.Destination)
		}
		for _, rule := range next.FS() {
			if v.ReadOnly && rule.Mode == policy.Write && (pattern{rule}).reaches(v.Destination) {
				return cannot(text(rule), "the mount at %s is read-only: allow read there", v.Destination)
			}
		}
	}
	return nil
}

// about are the rules that may decide about a volume.
func about(v Volume, p policy.Policy) []policy.FSRule {
	return slices.DeleteFunc(slices.Clone(p.FS()), func(rule policy.FSRule) bool {
		p := pattern{rule}
		return rule.Mode == policy.Deny && p.anywhere() || !p.reaches(v.Source) && !p.reaches(v.Destination)
	})
}

// masked reports a rule that is a masked path in a container which is made with it.
func masked(r policy.FSRule) bool {
	pattern := strings.TrimSuffix(r.Pattern, "/**")
	return r.Mode == policy.Deny && policy.LiteralDir(pattern) == pattern
}

// holder says what holds a file rule that came into force while the container runs.
func (r *Record) holder(rule policy.FSRule) string {
	shown := func(v Volume) bool { return pattern{rule}.reaches(v.Destination) }
	switch {
	case masked(rule) && slices.Contains(r.Made.Policy.FS(), rule):
		return "masked path"
	case rule.Mode != policy.Deny && !slices.ContainsFunc(r.Files.Volumes, shown):
		return "nobody has to: no volume shows what it opens"
	}
	return lsm
}

// Places are where files of the host are in the container under a policy: in one that an
// engine made where its volumes are, as long as it lives.
func (r *Record) Places(p policy.Policy) []string {
	if r.Own {
		return policy.Places(p.FS())
	}
	return r.Files.Places()
}

// OwnFiles are the rules for the container's own files, beside a policy's for its
// volumes: those of an image are its own, but for what is denied. What was denied by its
// path when the container was made is masked.
func (r *Record) OwnFiles(p policy.Policy) []policy.FSRule {
	if r.Own {
		return bundle.OwnFiles()
	}
	own := []policy.FSRule{{Mode: policy.Execute, Pattern: "/**"}, {Mode: policy.Write, Pattern: "/**"}}
	for _, rule := range p.FS() {
		if rule.Mode == policy.Deny && (!masked(rule) || !slices.Contains(r.Made.Policy.FS(), rule)) {
			own = append(own, rule)
		}
	}
	return own
}
