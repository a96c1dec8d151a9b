package policy

import "testing"

// TestCompileGuest has the guest's own root around the policy's places.
func TestCompileGuest(t *testing.T) {
	own := []FSRule{{Execute, "/usr"}, {Write, "/tmp"}, {Read, "/etc"}}
	rules := []FSRule{{Read, "/srv/*.csv"}, {Read, "/tmp/job/*.csv"}, {Write, "/usr/share/out"}, {Deny, "/**/x*"}}
	a, err := CompileGuest(own, rules, Places(rules))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]Access{
		"/": 0, "/usr": MayRead | MayExecute, "/usr/lib/x": MayRead | MayExecute, "/etc/hosts": MayRead, "/tmp/a": MayRead | MayWrite | Own, "/tmp/x": MayRead | MayWrite | Own,
		"/srv/a.csv": MayRead, "/srv/x.csv": Denied, "/srv/a": 0, "/srv": 0, "/tmp/job": 0, "/tmp/job/a.csv": MayRead, "/tmp/job/a": 0, "/tmp/jobs": MayRead | MayWrite | Own,
		"/usr/share/out/a": MayRead | MayWrite, "/usr/share/out/x": Denied, "/usr/share/outx": MayRead | MayExecute, "/home": 0,
	} {
		if got, reference := a.Decide(path), DecideGuest(own, rules, Places(rules), path); got != want || reference != want {
			t.Errorf("%s: %v, reference %v, want %v", path, got, reference, want)
		}
	}
}

// TestCompileGuestOfEngine: where an engine made the container, its volumes are the
// places, whatever they are called, and its own files are its own but for denied ones.
func TestCompileGuestOfEngine(t *testing.T) {
	own := []FSRule{{Execute, "/**"}, {Write, "/**"}, {Deny, "/**/*.key"}}
	rules := []FSRule{{Read, "/srv/*/in/*.csv"}, {Write, "/srv/a/out"}, {Deny, "/**/*.key"}, {Read, "/elsewhere"}}
	places := []string{"/srv/a", "/data/[x]*"}
	a, err := CompileGuest(own, rules, places)
	if err != nil {
		t.Fatal(err)
	}
	const image = MayRead | MayWrite | MayExecute | Own
	for path, want := range map[string]Access{
		"/": image, "/usr/bin/sh": image, "/srv": image, "/srv/b/in/x": image, "/srv/ab": image, "/elsewhere/x": image, "/etc/tls.key": Denied, "/etc/tls.key/x": Denied,
		"/srv/a": 0, "/srv/a/x": 0, "/srv/a/in/x.csv": MayRead, "/srv/a/in/x": 0, "/srv/a/out/x": MayRead | MayWrite, "/srv/a/out/x.key": Denied,
		"/data/[x]*": 0, "/data/[x]*/y": 0, "/data/x1": image,
	} {
		if got, reference := a.Decide(path), DecideGuest(own, rules, places, path); got != want || reference != want {
			t.Errorf("%s: %v, reference %v, want %v", path, got, reference, want)
		}
	}
}

func TestCompileGuestRefuses(t *testing.T) {
	for _, bad := range []struct{ own, rules []FSRule }{
		{[]FSRule{{"list", "/usr"}}, nil}, {[]FSRule{{Read, "usr"}}, nil}, {nil, []FSRule{{Execute, "/srv/a"}}}, {nil, []FSRule{{Read, "/usr"}}},
	} {
		if _, err := CompileGuest(bad.own, bad.rules, nil); err == nil {
			t.Errorf("%v and %v were compiled", bad.own, bad.rules)
		}
	}
}
