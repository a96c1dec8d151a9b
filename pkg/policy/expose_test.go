package policy

import (
	"slices"
	"strings"
	"testing"
)

func TestExposeIsPartOfAPolicy(t *testing.T) {
	p := must(t)(must(t)(Defaults().ExposePort(9000)).ExposePort(8000))
	if got := p.Expose(); !slices.Equal(got, []uint16{8000, 9000}) {
		t.Errorf("exposed: %v", got)
	}
	p.Expose()[0] = 1 // a copy
	if !strings.Contains(string(p.Canonical()), `"expose":[8000,9000]`) {
		t.Errorf("canonical: %s", p.Canonical())
	}
	if q := must(t)(Parse([]byte("expose: [9000, 8000, 9000]"), "p.yml")); q.Digest() != p.Digest() {
		t.Errorf("parsed: %s", q.Canonical())
	}
	if strings.Contains(string(Defaults().Canonical()), "expose") {
		t.Error("a policy that exposes nothing has another digest than it had")
	}
	for _, port := range []int{-1, 0, 80, 1023, 65536} {
		if _, err := p.ExposePort(port); err == nil || !strings.HasPrefix(err.Error(), `expose: "`) {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

// In the guest two cannot listen at one port, whichever rule comes first.
func TestExposedPortIsNoEndpoint(t *testing.T) {
	exposed := must(t)(Defaults().ExposePort(8000))
	if _, err := exposed.AllowTCP("192.0.2.0/24:7999-8001"); err == nil || !strings.Contains(err.Error(), "are one port inside the guest") {
		t.Errorf("an endpoint at an exposed port: %v", err)
	}
	served := must(t)(Defaults().AllowTCP("api.example.com:8000"))
	if _, err := served.ExposePort(8000); err == nil || !strings.Contains(err.Error(), "api.example.com:8000") {
		t.Errorf("exposing an endpoint's port: %v", err)
	}
	must(t)(must(t)(exposed.AllowUDP("192.0.2.1:8000")).AllowTCP("192.0.2.1:8001"))
}

func TestExposeIsInheritedAndCompared(t *testing.T) {
	document := []byte("version: 1\nsandboxes:\n  base: {expose: [8000]}\n  job: {extends: base, expose: [9000]}\n  other: {extends: base}\n")
	base := must(t)(ParseSandbox(document, "p.yml", Choice{Sandbox: "base"}))
	job := must(t)(ParseSandbox(document, "p.yml", Choice{Sandbox: "job"}))
	if got := job.Expose(); !slices.Equal(got, []uint16{8000, 9000}) {
		t.Errorf("job exposes %v", got)
	}
	if other := must(t)(ParseSandbox(document, "p.yml", Choice{Sandbox: "other"})); other.Digest() != base.Digest() {
		t.Errorf("a sibling has what it does not inherit: %s", other.Canonical())
	}
	more, err := Compare(base, job)
	if err != nil || len(more) != 1 || more[0].String() != "expose: listen 9000: by 9000" {
		t.Errorf("job permits %v, %v", more, err)
	}
	if less, err := Compare(job, base); err != nil || len(less) != 0 {
		t.Errorf("base permits %v, %v", less, err)
	}
}
