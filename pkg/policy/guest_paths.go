package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Execute is the mode of a rule about the guest's own root: what it matches may be
// read and executed. No policy holds such a rule, see [CompileGuest].
const Execute FSMode = "execute"

// Places are where files of the host are in a guest: the literal parts of what
// opens them.
func Places(rules []FSRule) []string {
	var places []string
	for _, r := range rules {
		if r.Mode != Deny {
			places = append(places, LiteralDir(r.Pattern))
		}
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// CompileGuest makes the automaton that decides about every path that a guest can
// name: those of its own root, by own, and those of files of the host, which are in
// places, by rules.
//
// A place, and everything below it, is the policy's: what rules says there is all
// that holds ([DecideFS]), and without a match nothing is open. Everywhere else own
// decides, and rules are not heard: a deny rule takes away from what other rules
// open, not from the guest's own Python. The modes of own are [Read], [Execute],
// [Deny], and [Write], whose paths lead to nobody but the guest ([Own]). With
// [Places] it is what the mounts of a guest do as well.
//
// An explosion of states is an [*Error], as in [CompileGlobs].
func CompileGuest(own, rules []FSRule, places []string) (*Automaton, error) {
	var all []FSRule
	var meanings []meaning
	for _, r := range own {
		if err := r.checkOwn(); err != nil {
			return nil, err
		}
		all, meanings = append(all, r), append(meanings, meaning(r.ownAccess())<<ownShift)
	}
	covered := make(map[string]bool) // places that are what a rule opens: one pattern says both
	for _, place := range places {
		covered[place] = false
	}
	for _, r := range rules {
		if err := r.check(); err != nil {
			err.Key = "fs"
			return nil, err
		}
		says := meaning(r.access())
		if _, place := covered[r.Pattern]; place && r.Mode != Deny && isLiteral(r.Pattern) {
			says, covered[r.Pattern] = says|hostPlace, true
		}
		all, meanings = append(all, r), append(meanings, says)
	}
	for _, place := range places {
		if covered[place] {
			continue
		}
		all, meanings = append(all, placeRule(place)), append(meanings, hostPlace)
	}
	a, err := compileGlobs(all, meanings)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// DecideGuest is the reference meaning of [CompileGuest].
func DecideGuest(own, rules []FSRule, places []string, path string) Access {
	for _, place := range places {
		if placeRule(place).Matches(path) {
			access, _ := DecideFS(rules, path)
			return access
		}
	}
	var access Access
	for _, r := range own {
		if r.Matches(path) {
			access |= r.ownAccess()
		}
	}
	if access&Denied != 0 {
		return Denied
	}
	return access
}

// placeRule matches a place and all below it, whatever characters are in its name.
func placeRule(place string) FSRule {
	return FSRule{Read, strings.TrimSuffix(QuotePattern(place), "/") + "/**"}
}

func (r FSRule) checkOwn() error {
	if r.Mode != Read && r.Mode != Write && r.Mode != Execute && r.Mode != Deny {
		return fmt.Errorf("rule of the guest's own root: mode %q: write read, write, execute or deny", r.Mode)
	}
	if err := checkPattern(r.Pattern); err != nil {
		err.Key = "own"
		return err
	}
	return nil
}

// ownAccess is what a rule about the guest's own root says.
func (r FSRule) ownAccess() Access {
	switch r.Mode {
	case Execute:
		return MayRead | MayExecute
	case Write:
		return MayRead | MayWrite | Own
	case Deny:
		return Denied
	}
	return MayRead
}

// meaning is what one rule says about a path that it matches, and by or what
// several say: an [Access] of the policy's rules, one of the guest's own, and
// whether the policy is asked at all.
type meaning uint16

const (
	ownShift          = 8
	hostPlace meaning = 1 << 15
)

func plainMeanings(rules []FSRule) []meaning {
	meanings := make([]meaning, len(rules))
	for i, r := range rules {
		meanings[i] = meaning(r.access()) | hostPlace
	}
	return meanings
}

// verdict is what rules say together.
func (m meaning) verdict() Access {
	access := Access(m & 0xff)
	if m&hostPlace == 0 {
		access = Access(m >> ownShift)
	}
	if access&Denied != 0 {
		return Denied
	}
	return access
}
