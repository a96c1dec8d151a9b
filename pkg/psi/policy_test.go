package psi

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/channel"
	"github.com/psi-runtime/psi/pkg/policy"
)

func TestPolicies(t *testing.T) {
	c := open(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.yml")
	if err := os.WriteFile(file, []byte("open_files: 55\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := policy.Defaults().Limits()
	l.OpenFiles = 66
	built, err := policy.Defaults().WithLimits(l)
	if err != nil {
		t.Fatal(err)
	}
	for want, p := range map[int64]Policy{256: {}, 55: File(file), 66: Of(built), 77: Document(`{"open_files": 77}`)} {
		sb, err := c.Spawn(soon(t), "policy", SpawnOptions{Policy: p})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := sb.Call(soon(t), "resource.getrlimit", 7); err != nil || !reflect.DeepEqual(v, channel.Tuple{want, want}) {
			t.Errorf("open_files is %v, %v, want %d", v, err, want)
		}
		if err := sb.Close(soon(t), Grace); err != nil {
			t.Fatal(err)
		}
	}
	for says, p := range map[string]Policy{
		"memory": Document(`{"memory": 1}`), "no/such/file": File("no/such/file"), "no-such-policy": Named("no-such-policy"),
	} {
		var wrong *PolicyError
		if _, err := c.Spawn(soon(t), "wrong", SpawnOptions{Policy: p}); !errors.As(err, &wrong) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %#v", says, err)
		}
	}
	sb, err := c.Spawn(soon(t), "imports", SpawnOptions{AllowedImports: []string{"math"}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, sb, "import math, socket")
	var guest *GuestError
	if _, err := sb.Recv(soon(t)); !errors.As(err, &guest) || !strings.Contains(guest.Type, "ImportError") {
		t.Errorf("import socket: %v", err)
	}
	var wrong *PolicyError
	if err := sb.UpdatePolicy(soon(t), Document(`{"preload": ["math"]}`), ""); !errors.As(err, &wrong) {
		t.Errorf("another preload for a running guest: %v", err)
	}
}

func TestUpdatePolicy(t *testing.T) {
	c := open(t)
	sb := spawn(t, c, `{"mem": "64MiB"}`)
	larger := Document(`{"mem": "128MiB"}`)
	permits, forbids, err := sb.TryPolicy(soon(t), larger, "")
	if err != nil || len(permits) != 1 || permits[0].Key != "mem" || len(forbids) != 0 {
		t.Errorf("a dry run: %v, %v, %v", permits, forbids, err)
	}
	const token = "0123456789abcdef-of-a-test"
	if err := c.Protect(soon(t), token); err != nil {
		t.Fatal(err)
	}
	var refused *PolicyAuthError
	if err := sb.UpdatePolicy(soon(t), larger, ""); !errors.As(err, &refused) || !errors.Is(err, ErrSandbox) {
		t.Errorf("without the token: %v", err)
	}
	if err := sb.UpdatePolicy(soon(t), larger, token); err != nil {
		t.Errorf("with the token: %v", err)
	}
	run(t, sb, "x = bytearray(90 << 20); post(len(x))")
	if v := recv(t, sb); v != int64(90<<20) {
		t.Errorf("got %v", v)
	}
}

// What may be sent follows the policy, at both ends and both ways.
func TestUpdateMessage(t *testing.T) {
	sb := spawn(t, open(t), `{"message": "100KiB", "mem": "512MiB"}`)
	run(t, sb, "def attempt(n):\n try: post('x' * n)\n except ValueError as e: post(str(e))")
	attempt := func(n int) int {
		t.Helper()
		if _, err := sb.Call(soon(t), "attempt", n); err != nil {
			t.Fatal(err)
		}
		return len(recv(t, sb).(string))
	}
	const mib = 1 << 20
	for _, step := range []struct {
		message string
		allowed int64
	}{{"2MiB", 2 * mib}, {"300KiB", 300 << 10}, {"1MiB", mib}, {"1KiB", 1 << 10}} {
		if err := sb.UpdatePolicy(soon(t), Document(`{"message": "`+step.message+`", "mem": "512MiB"}`), ""); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{500, 100 << 10, 500 << 10, 3 * mib / 2} {
			got := attempt(n)
			if allowed := int64(n) < step.allowed; (got == n) != allowed {
				t.Errorf("message: %s: of %d bytes %d came", step.message, n, got)
			}
			_, err := sb.Call(soon(t), "len", strings.Repeat("x", n))
			if allowed := int64(n) < step.allowed; (err == nil) != allowed {
				t.Errorf("message: %s: a call with %d bytes: %v", step.message, n, err)
			}
		}
	}
}

// A guest that goes on with its old limit gets as far as one that could not know.
func TestUpdateMessageOfHostile(t *testing.T) {
	c := open(t)
	sb := spawn(t, c, `{"message": "1MiB"}`)
	run(t, sb, "s = post.__self__\ns.reloaded.look = lambda: False\ns.reloaded.takers.clear()\npost(1)")
	recv(t, sb)
	if err := sb.UpdatePolicy(soon(t), Document(`{"message": "100KiB"}`), ""); err != nil {
		t.Fatal(err)
	}
	run(t, sb, "while True: post('x' * 900000)")
	for n := 0; ; n++ {
		_, err := sb.Recv(soon(t))
		if err == nil && n < 18 { // what was in the socket when the client's reader learnt of it, at most 17 files, and one more
			continue
		}
		var end *SandboxError
		if !asSandbox(err, &end) || !strings.Contains(end.Error(), "167936") {
			t.Errorf("after %d values: %v", n, err)
		}
		return
	}
}
