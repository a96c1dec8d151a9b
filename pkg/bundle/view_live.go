package bundle

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// OwnFiles are the rules for a guest's own root, for a host that decides about each
// path in the kernel (internal/enforce): what is in the root may be read, what is
// below /usr executed, and the small file systems written. What a host directory
// of the policy covers is the policy's alone, see [policy.CompileGuest].
func OwnFiles() []policy.FSRule {
	return []policy.FSRule{
		{Mode: policy.Read, Pattern: "/**"},
		{Mode: policy.Execute, Pattern: "/usr"},
		{Mode: policy.Write, Pattern: "/dev"},
		{Mode: policy.Write, Pattern: "/proc"},
		{Mode: policy.Write, Pattern: "/tmp"},
	}
}

// PlanLive is [PlanView] for a host where the kernel decides about each path: the
// literal part of each rule is mounted whole, and the rules hold inside it for
// files that are made later as well. Without such a kernel it would show everything
// there. A directory with a mount point below is planned as PlanView does it.
func PlanLive(p policy.Policy) (View, error) {
	rules := p.FS()
	deny := newDenials(rules)
	submounts, err := ownMounts.now()
	if err != nil {
		return View{}, fmt.Errorf("planning view: %w", err)
	}
	var plans []*plan
	entries := maxEntries
	for _, r := range rules {
		if r.Mode == policy.Deny {
			continue
		}
		shown, err := newShownRule(r)
		if err != nil {
			return View{}, err
		}
		p := &plan{rule: shown, deny: deny, limit: maxMounts, submounts: submounts, entries: &entries}
		plans = append(plans, p)
		if err := p.runLive(rules); err != nil {
			return View{}, err
		}
	}
	return merge(plans, maxMounts)
}

// runLive plans one mount, of a literal directory; else it is run.
func (p *plan) runLive(rules []policy.FSRule) error {
	handle, err := openHandle(p.rule.source)
	if err != nil {
		return p.rule.fail(p.rule.source, "cannot be opened", "", err)
	}
	defer handle.Close()
	kind, err := fileType(handle)
	if err != nil || kind != unix.S_IFDIR || p.submounts.below(p.rule.source) || p.deny.hidesAbove(p.rule.dest) {
		return p.run()
	}
	p.live = true
	m := p.mount("", true)
	m.Rules = rulesIn(m.Dest, rules)
	p.shown = part{whole: true, mounts: []ViewMount{m}}
	return nil
}

// rulesIn writes down the rules that may decide about something in a directory.
func rulesIn(dir string, rules []policy.FSRule) string {
	var b strings.Builder
	for _, r := range rules {
		literal := policy.LiteralDir(r.Pattern)
		if isBelow(literal, dir) || isBelow(dir, literal) {
			fmt.Fprintf(&b, "%s %s\n", r.Mode, r.Pattern)
		}
	}
	return b.String()
}
