package policy

import (
	"strings"
	"testing"
)

func TestSeccomp(t *testing.T) {
	python := must(t)(Parse([]byte("seccomp: python"), "p.yml"))
	if python.Seccomp() != SeccompPython || Defaults().Seccomp() != SeccompEngine {
		t.Errorf("%q, %q", python.Seccomp(), Defaults().Seccomp())
	}
	again := must(t)(Parse(python.Canonical(), "canonical"))
	if again.Digest() != python.Digest() || python.Digest() == Defaults().Digest() || strings.Contains(string(Defaults().Canonical()), "seccomp") {
		t.Errorf("%s", python.Canonical())
	}
	for _, bad := range []string{"seccomp: none", "seccomp:", "seccomp: [python]", "seccomp: true", `seccomp: ""`} {
		if _, err := Parse([]byte(bad), "p.yml"); err == nil || !strings.Contains(err.Error(), "write python") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	child := must(t)(ParseSandbox([]byte("version: 1\nsandboxes: {a: {seccomp: python}, b: {extends: a}}"), "p.yml", Choice{Sandbox: "b"}))
	if child.Seccomp() != SeccompPython {
		t.Error("a child does not inherit the filter")
	}
	for _, tc := range []struct {
		a, b Policy
		n    int
	}{{python, Defaults(), 1}, {Defaults(), python, 0}, {python, python, 0}} {
		if diff, err := Compare(tc.a, tc.b); err != nil || len(diff) != tc.n {
			t.Errorf("%v, %v", diff, err)
		}
	}
}
