package policy

import "fmt"

// Execute is the mode of a rule about the guest's own root: what it matches may be
// read and executed. No policy holds such a rule, see [CompileGuest].
const Execute FSMode = "execute"

// CompileGuest makes the automaton that decides about every path that a guest can
// name: those of its own root, by own, and those of the host that its policy
// speaks about, by rules.
//
// The literal part of a read or write rule, and everything below it, is the
// policy's: what rules says there is all that holds ([DecideFS]), and without a
// match nothing is open. Everywhere else own decides, and no deny rule is heard:
// it takes away from what other rules open, not from the guest's own Python. The
// modes of own are [Read], [Execute], and [Write], whose paths lead to nobody but
// the guest ([Own]). It is what the mounts of a guest do as well.
//
// An explosion of states is an [*Error], as in [CompileGlobs].
func CompileGuest(own, rules []FSRule) (*Automaton, error) {
	var all []FSRule
	var meanings []meaning
	for _, r := range own {
		if err := r.checkOwn(); err != nil {
			return nil, err
		}
		all, meanings = append(all, r), append(meanings, meaning(r.ownAccess())<<ownShift)
	}
	for _, r := range rules {
		if err := r.check(); err != nil {
			err.Key = "fs"
			return nil, err
		}
		says := meaning(r.access())
		if r.Mode != Deny && isLiteral(r.Pattern) {
			says |= hostPlace
		} else if r.Mode != Deny {
			all, meanings = append(all, FSRule{Read, LiteralDir(r.Pattern)}), append(meanings, hostPlace)
		}
		all, meanings = append(all, r), append(meanings, says)
	}
	a, err := compileGlobs(all, meanings)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// DecideGuest is the reference meaning of [CompileGuest].
func DecideGuest(own, rules []FSRule, path string) Access {
	for _, r := range rules {
		if r.Mode != Deny && (FSRule{Read, LiteralDir(r.Pattern)}).Matches(path) {
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
	return access
}

func (r FSRule) checkOwn() error {
	if r.Mode != Read && r.Mode != Write && r.Mode != Execute {
		return fmt.Errorf("rule of the guest's own root: mode %q: write read, write or execute", r.Mode)
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
	if m&hostPlace == 0 {
		return Access(m >> ownShift)
	}
	if Access(m&0xff)&Denied != 0 {
		return Denied
	}
	return Access(m & 0xff)
}
