package policy

import "testing"

// TestCompileGuest has the guest's own root around the policy's places.
func TestCompileGuest(t *testing.T) {
	own := []FSRule{{Execute, "/usr"}, {Write, "/tmp"}, {Read, "/etc"}}
	rules := []FSRule{{Read, "/srv/*.csv"}, {Read, "/tmp/job/*.csv"}, {Write, "/usr/share/out"}, {Deny, "/**/x*"}}
	a, err := CompileGuest(own, rules)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]Access{
		"/": 0, "/usr": MayRead | MayExecute, "/usr/lib/x": MayRead | MayExecute, "/etc/hosts": MayRead, "/tmp/a": MayRead | MayWrite | Own, "/tmp/x": MayRead | MayWrite | Own,
		"/srv/a.csv": MayRead, "/srv/x.csv": Denied, "/srv/a": 0, "/srv": 0, "/tmp/job": 0, "/tmp/job/a.csv": MayRead, "/tmp/job/a": 0, "/tmp/jobs": MayRead | MayWrite | Own,
		"/usr/share/out/a": MayRead | MayWrite, "/usr/share/out/x": Denied, "/usr/share/outx": MayRead | MayExecute, "/home": 0,
	} {
		if got, reference := a.Decide(path), DecideGuest(own, rules, path); got != want || reference != want {
			t.Errorf("%s: %v, reference %v, want %v", path, got, reference, want)
		}
	}
}

func TestCompileGuestRefuses(t *testing.T) {
	for _, bad := range []struct{ own, rules []FSRule }{
		{[]FSRule{{Deny, "/usr"}}, nil}, {[]FSRule{{Read, "usr"}}, nil}, {nil, []FSRule{{Execute, "/srv/a"}}}, {nil, []FSRule{{Read, "/usr"}}},
	} {
		if _, err := CompileGuest(bad.own, bad.rules); err == nil {
			t.Errorf("%v and %v were compiled", bad.own, bad.rules)
		}
	}
}
