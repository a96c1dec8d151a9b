package supervisor

import (
	"testing"

	"github.com/psi-runtime/psi/pkg/policy"
)

// A blank that is prepared for endpoints is for policies with endpoints alone; they take one
// that is not, before another is made.
func TestPoolPrefersBlanksThatArePrepared(t *testing.T) {
	plain := kind{policy: policy.Defaults(), digest: "d"}
	reaching := plain
	reaching.reaches = true
	p := newPool(&Supervisor{}, PoolOptions{Size: 2})
	put := func(k kind, id string) {
		s := p.shelves[k.key()]
		s.ready = append(s.ready, &guest{id: id})
	}
	picked := func(k kind) string {
		if g := p.pick(k, peer{}, false); g != nil {
			return g.id
		}
		return ""
	}
	for _, k := range []kind{reaching, plain} { // from now on both are wanted
		if got := picked(k); got != "" {
			t.Errorf("from an empty pool: %q", got)
		}
	}
	put(plain, "plain-1")
	put(plain, "plain-2")
	put(reaching, "prepared-1")
	for _, want := range []string{"prepared-1", "plain-2", "plain-1", ""} {
		if got := picked(reaching); got != want {
			t.Errorf("for a policy with endpoints %q, want %q", got, want)
		}
	}
	put(reaching, "prepared-2")
	if got := picked(plain); got != "" {
		t.Errorf("for a policy without endpoints %q", got)
	}
}
