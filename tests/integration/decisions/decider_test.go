package decisions

import (
	"slices"
	"strconv"
	"strings"
)

// reply is what drive.py says.
type reply struct {
	Seen     []sight
	Enforced []struct{ Rule, By string }
	Told     []denial
	Untold   int // denials without an event
}

// sight is the answer to one question, and what could be seen of who gave it.
type sight struct {
	Answer   string
	Filtered bool   // the filter of system calls refuses the call, whatever it is about
	There    []bool // whether the files that the row names are on the host
	Here     []bool // whether the guest finds them
	Mounts   []mount
	Agent    bool // the error is that of the guest's agent, which names the list
	Modules  bool // the files are those of modules
}

// mount is that in which a row's name is, or its directory: two for each name.
type mount struct{ Readonly, Noexec bool }

// denial is a DENIED event.
type denial struct {
	Command   string
	Operation string
	Errno     string
}

// The mechanisms, as in the column `by`.
const (
	byLSM     = "BPF-LSM"
	byCgroup  = "BPF-cgroup"
	byFilter  = "seccomp"
	byMounts  = "mounts"
	byKernel  = "kernel" // its own limits, which know of no policy
	byAgent   = "agent"  // which tells guest code what its list allows, and holds nothing
	byRoot    = "root"   // which does not have the file
	byNothing = "nothing there"
	byNobody  = "nobody known"
)

// atCgroup are operations that the programs at the guest's cgroup tell of; the others are the
// LSM programs', where there are any.
var atCgroup = []string{"connect", "send", "bind"}

// pairsRule is what a state says of who decides where a unix socket leads.
const pairsRule = "pairs of datagram sockets"

// decidedBy is who gave the answer to row i, from what was seen; the table says who should.
func (r reply) decidedBy(i int, do string) string {
	s := r.Seen[i]
	if s.Answer == "ok" {
		return ""
	}
	for _, d := range r.Told {
		// The agent's own calls are told of as well, under another name.
		if d.Command == "row-"+strconv.Itoa(i) && d.Errno == s.Answer {
			if slices.Contains(atCgroup, d.Operation) || d.Operation == "unix" && r.heldBy(pairsRule, byCgroup) {
				return byCgroup
			}
			return byLSM
		}
	}
	readonly := slices.ContainsFunc(s.Mounts, func(m mount) bool { return m.Readonly })
	noexec := len(s.Mounts) > 0 && s.Mounts[0].Noexec
	there, hidden := slices.Contains(s.There, true), false
	for i := range s.There {
		hidden = hidden || s.There[i] && !s.Here[i]
	}
	switch {
	case s.Agent:
		return byAgent
	case s.Modules && hidden:
		return byRoot
	case s.Answer == "EPERM" && s.Filtered:
		return byFilter
	case s.Answer == "ENAMETOOLONG":
		return byKernel
	case s.Answer == "EROFS" && readonly, s.Answer == "ENOENT" && hidden:
		return byMounts
	case strings.Contains(do, "execute") && noexec && (s.Answer == "EACCES" || s.Answer == "EPERM"):
		return byMounts
	case s.Answer == "ENOENT" && !there:
		return byNothing
	}
	return byNobody
}

// heldBy says whether the guest's state names a mechanism for a rule: "fs" is every one of files.
func (r reply) heldBy(rule, mechanism string) bool {
	if mechanism == byCgroup {
		mechanism = "cgroup eBPF" // as states call it
	}
	return slices.ContainsFunc(r.Enforced, func(e struct{ Rule, By string }) bool {
		key, _, _ := strings.Cut(e.Rule, ":")
		return key == rule && strings.Contains(e.By, mechanism)
	})
}
