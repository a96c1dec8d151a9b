package attend

import "time"

const (
	// throttlePoll is how often cpu.stat is read; an event is at most this late.
	throttlePoll = 80 * time.Millisecond
	// throttleQuiet ends an occurrence: eight quota periods without a throttled one.
	// A guest that computes without pause is throttled once per period, so shorter
	// windows would cut one busy stretch into many events.
	// So would those in which a busy machine does not let the guest run at all.
	throttleQuiet = 8 * cfsPeriod
)

// throttlePhase turns the growing counter nr_throttled into occurrences. One
// occurrence is a stretch of time in which the counter grows at least once every
// throttleQuiet; its first growth is the event.
type throttlePhase struct {
	count uint64
	last  time.Time // when the counter was last seen to grow; zero before that
}

// observe takes a reading and reports whether a new occurrence began with it.
func (t *throttlePhase) observe(now time.Time, count uint64) bool {
	if count <= t.count {
		return false
	}
	began := t.last.IsZero() || now.Sub(t.last) > throttleQuiet
	t.count, t.last = count, now
	return began
}
