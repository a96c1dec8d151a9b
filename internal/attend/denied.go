package attend

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/policy"
)

// watchDenials has the guest's owner told of what the kernel refuses.
func (a *Attendant) watchDenials() error {
	if a.opts.OnEvent == nil {
		return nil
	}
	var errs []error
	if a.net.guest != nil {
		errs = append(errs, a.net.guest.OnDenied(a.tellDenied))
	}
	if a.files.guest != nil {
		errs = append(errs, a.files.guest.OnDenied(a.tellDenied))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("watching the guest's denials: %w", err)
	}
	return nil
}

// tellDenied makes an event of a denial.
func (a *Attendant) tellDenied(d enforce.Denial) {
	a.tell(Event{Time: d.Time, Type: Denied, Details: a.denialDetails(d)})
}

// denialDetails are the details of a DENIED event, in the words in which
// `psi-runtime policy explain` reads them:
//
//	kind        "fs", "net", or the operation itself when no rule of a policy is about it
//	operation   "connect", "read" …
//	path        of fs, with "read" or "write" as access; path_hex beside it if it is not text
//	address     of net and bind; of net also protocol, "tcp" or "udp", and the name that stands for it in the guest, if one does;
//	            of unix, where programs at the cgroup refuse it: the socket's name as the guest gave it, "@…" if it is abstract
//	rule        the rule that denied; null: no rule allowed it
//	errno, pid (the host's), command (the guest's own word for itself)
//	suppressed  denials before this one that were not told; alone, after a flood
func (a *Attendant) denialDetails(d enforce.Denial) map[string]any {
	details := map[string]any{"suppressed": d.Suppressed}
	if d.Kind == 0 {
		details["kind"] = "suppressed"
		return details
	}
	p := *a.policy.Load()
	details["kind"], details["operation"], details["rule"] = d.Kind.String(), d.Kind.String(), nil
	details["errno"], details["pid"], details["command"] = unix.ErrnoName(d.Errno), d.PID, text(d.Command)
	switch {
	case d.Kind == enforce.DeniedSocket:
		details["family"], details["type"], details["protocol"] = d.Socket[0], d.Socket[1], d.Socket[2]
	case d.Kind == enforce.DeniedName:
		details["address"] = text(d.Name)
	case d.Kind.IsFile():
		fileDetails(details, d, p)
	default:
		a.addressDetails(details, d, p)
	}
	return details
}

func (a *Attendant) addressDetails(details map[string]any, d enforce.Denial, p policy.Policy) {
	details["address"] = d.Address.String()
	if name := a.net.name(d.Address.Addr()); name != "" {
		details["name"] = name
	}
	switch d.Kind {
	case enforce.DeniedConnect:
		details["kind"], details["protocol"] = "net", "tcp"
	case enforce.DeniedSend:
		details["kind"], details["protocol"] = "net", "udp"
	default:
		return
	}
	rule, denies := denyingRule(p, details["protocol"].(string), d.Address.Port(), func(e policy.Endpoint) bool {
		block, ok := e.Prefix()
		return ok && block.Contains(d.Address.Addr())
	})
	if denies {
		details["rule"] = rule
	}
}

func fileDetails(details map[string]any, d enforce.Denial, p policy.Policy) {
	details["path"] = text(d.Path)
	if details["path"] != d.Path {
		details["path_hex"] = hex.EncodeToString([]byte(d.Path))
	}
	switch d.Kind {
	case enforce.DeniedRead:
		details["kind"], details["access"] = "fs", "read"
	case enforce.DeniedWrite, enforce.DeniedCreate, enforce.DeniedChange:
		details["kind"], details["access"] = "fs", "write"
	}
	if rules := p.FS(); d.Rule >= 0 && d.Rule < len(rules) {
		details["rule"] = fmt.Sprintf("fs: {%s: %q}", rules[d.Rule].Mode, rules[d.Rule].Pattern)
	}
}

// denyingRule finds the rule of tcp or udp that takes an endpoint out of what others
// allow. The kernel's table does not have it: there, what is denied is just not allowed.
func denyingRule(p policy.Policy, key string, port uint16, covers func(policy.Endpoint) bool) (rule string, denies bool) {
	_, denied := p.TCPRules()
	if key == "udp" {
		_, denied = p.UDPRules()
	}
	at := slices.IndexFunc(denied, func(e policy.Endpoint) bool {
		first, last := e.Ports()
		return first <= port && port <= last && covers(e)
	})
	if at < 0 {
		return "", false
	}
	return fmt.Sprintf("%s: {deny: %q}", key, denied[at]), true
}

// text is a guest's bytes as JSON can carry them.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, string(utf8.RuneError))
}
