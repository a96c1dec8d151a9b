package attend

import (
	"math"
	"runtime"
	"time"
)

const (
	// minPoll is the shortest sleep of the cpu clock. Below it the kernel's own
	// accounting (charged at the scheduler's tick) is no longer finer than the poll.
	minPoll = 5 * time.Millisecond
	// maxPoll bounds the sleep so that a budget lowered by a reload, and a clock that
	// jumped with a suspended machine, are noticed soon.
	maxPoll = 10 * time.Second
	// cfsPeriod is the cpu controller's period that pkg/bundle writes: inside one
	// period a guest may burn its whole quota at once on every core.
	cfsPeriod = 100 * time.Millisecond
)

// cpuClock decides when the cgroup's cpu figure has to be read next so that a
// total budget is overshot by at most what runs during one minPoll.
type cpuClock struct {
	limit time.Duration // total cpu time allowed; zero means no limit
	quota float64       // cores the cpu controller grants over a period
	cores int           // cores of the machine
}

func newCPUClock(limit time.Duration, quota float64) cpuClock {
	return cpuClock{limit: limit, quota: quota, cores: runtime.NumCPU()}
}

// exceeded says whether a guest that used this much has passed its budget.
func (c cpuClock) exceeded(used time.Duration) bool {
	return c.limit > 0 && used >= c.limit
}

// sleep returns how long the guest cannot possibly pass its budget, having used
// this much: on all cores at once it needs remaining/cores, and held by its quota it
// needs remaining/quota less the bursts of the two periods that the sleep cuts.
// The sleeps shrink geometrically, so a long budget costs a few dozen reads.
func (c cpuClock) sleep(used time.Duration) time.Duration {
	remaining := c.limit - used
	if remaining <= 0 {
		return minPoll
	}
	safe := remaining / time.Duration(max(1, c.cores))
	if c.quota > 0 && !math.IsInf(c.quota, 0) {
		byQuota := float64(remaining)/c.quota - float64(2*cfsPeriod)
		safe = max(safe, time.Duration(min(byQuota, float64(maxPoll))))
	}
	return min(max(safe, minPoll), maxPoll)
}
