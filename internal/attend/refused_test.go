package attend

import (
	"testing"
	"time"
)

// A guest that is refused often is told about as often as of denials in the kernel, and
// the number of the others is not lost.
func TestRefusalsAreBounded(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	told, counted := 0, uint64(0)
	try := func() {
		if before, ok := r.take(now); ok {
			told++
			counted += before + 1
		}
	}
	for range 1000 {
		try()
	}
	if told != refusalBurst {
		t.Errorf("%d told at once", told)
	}
	now = now.Add(time.Second)
	try()
	if told != refusalBurst+1 || counted != 1001 {
		t.Errorf("after a second: %d told, which speak of %d", told, counted)
	}
	for range 100 { // one each interval
		now = now.Add(refusalInterval)
		try()
	}
	if told != refusalBurst+101 {
		t.Errorf("%d told", told)
	}
}
