package attend

import (
	"math/rand/v2"
	"testing"
	"time"
)

// guestModel burns cpu time as fast as a quota lets it: its whole share of a period
// at once, on all cores, as late or as early in each period as it likes.
type guestModel struct {
	cores int
	quota float64
	phase time.Duration // when a period begins
	late  bool          // burns at the end of a period instead of its beginning
}

// used is the cpu time consumed until t.
func (g guestModel) used(t time.Duration) time.Duration {
	share := time.Duration(g.quota * float64(cfsPeriod))
	busy := min(share/time.Duration(g.cores), cfsPeriod) // how long it runs in a period
	total := time.Duration(0)
	for start := g.phase - cfsPeriod; start < t; start += cfsPeriod {
		from := start
		if g.late {
			from = start + cfsPeriod - busy
		}
		if ran := min(t, from+busy) - max(from, 0); ran > 0 {
			total += time.Duration(g.cores) * ran
		}
	}
	return total
}

// Whatever the guest does, the clock sees the budget passed before more than one
// shortest sleep of all its cores is gone.
func TestCPUClockOvershoot(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		cores := 1 + random.IntN(64)
		g := guestModel{
			cores: cores, quota: float64(cores) * max(0.01, random.Float64()),
			phase: time.Duration(random.Int64N(int64(cfsPeriod))), late: random.IntN(2) == 0,
		}
		limit := time.Duration(1+random.Int64N(5000)) * time.Millisecond
		clock := cpuClock{limit: limit, quota: g.quota, cores: cores}
		bound := time.Duration(cores) * minPoll
		reads, now, used := 0, time.Duration(0), time.Duration(0)
		for ; !clock.exceeded(used); reads++ {
			now += clock.sleep(used)
			used = g.used(now)
		}
		if over := used - limit; over > bound {
			t.Fatalf("%+v, limit %v: passed by %v, allowed are %v", g, limit, over, bound)
		}
		if reads > 2000 {
			t.Errorf("%+v, limit %v: %d reads", g, limit, reads)
		}
	}
}

// A guest that sleeps costs one read in maxPoll.
func TestCPUClockOfAnIdleGuest(t *testing.T) {
	clock := cpuClock{limit: time.Hour, quota: 1, cores: 2}
	if got := clock.sleep(time.Millisecond); got != maxPoll {
		t.Errorf("sleep is %v", got)
	}
	if clock.exceeded(time.Hour-1) || !clock.exceeded(time.Hour) {
		t.Error("the budget ends at its end")
	}
	if (cpuClock{}).exceeded(time.Hour) {
		t.Error("no limit was passed")
	}
}
