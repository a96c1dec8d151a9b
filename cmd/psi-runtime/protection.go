package main

import (
	"github.com/psi-runtime/psi/internal/container"
	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/internal/engine"
)

// shownState is a container's state with what its policy comes to.
type shownState struct {
	container.State
	Psi *protection `json:"psi,omitempty"`
}

// protection is the policy of a container, and what holds each of its rules.
type protection struct {
	Policy   string               `json:"policy"` // digest
	Degraded bool                 `json:"degraded,omitempty"`
	Enforced []engine.Enforcement `json:"enforced"`
}

// untold asks who attends the container which events are not told of on this host. Nobody
// has to answer: there is none of a container that has ended, or is another user's.
func (s *shownState) untold(dir string) {
	var more []engine.Enforcement
	if s.Psi != nil && s.PID != 0 && control.AskForPolicy(dir, control.PolicyChange{Untold: true}, &more) == nil {
		s.Psi.Enforced = append(s.Psi.Enforced, more...)
	}
}

// withProtection adds the policy to a state, and takes our own annotations out of it.
func withProtection(s container.State) (shownState, error) {
	out := shownState{State: s}
	record, err := engine.ReadRecord(s.Annotations)
	if err != nil || record == nil {
		return out, err
	}
	out.Annotations = engine.Visible(s.Annotations)
	out.Psi = &protection{Policy: record.Policy.Digest(), Enforced: record.Enforced}
	for _, e := range record.Enforced {
		out.Psi.Degraded = out.Psi.Degraded || e.Missing
	}
	return out, nil
}
