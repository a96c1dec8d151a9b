package attend

import (
	"testing"
	"time"
)

// modelled is a guest of a model: it computes when it wants to, in periods that begin
// with it, and is held back when its share is used up.
type modelled struct {
	place
	world *model
	quota float64
	begin time.Duration // of its one busy stretch
	end   time.Duration
	reads int
}

// model is the guests of one group, and the time.
type model struct {
	now    time.Duration
	guests []*modelled
	reads  int // of the group
}

func (m *modelled) share() time.Duration { return time.Duration(m.quota * float64(cfsPeriod)) }

// busy is how long the guest has computed, or waited to.
func (m *modelled) busy() time.Duration { return min(m.world.now, m.end) - min(m.world.now, m.begin) }

func (m *modelled) cpu() time.Duration { // its start has cost some
	return time.Millisecond + m.busy()/cfsPeriod*m.share() + min(m.busy()%cfsPeriod, m.share())
}

func (m *modelled) CPU() (time.Duration, error) { m.reads++; return m.cpu(), nil }

// Throttled counts whole periods, as the kernel does.
func (m *modelled) Throttled() (uint64, error) {
	m.reads++
	if m.quota >= 1 {
		return 0, nil
	}
	return uint64(m.busy() / cfsPeriod), nil
}

func (m *modelled) ParentCPU() (total time.Duration, err error) {
	m.world.reads++
	for _, g := range m.world.guests {
		total += g.cpu()
	}
	return total, nil
}

// TestThrottles: whoever is held back is told of, once and within 100 ms; of a thousand
// idle guests nothing is read but the group that they are in.
func TestThrottles(t *testing.T) {
	const idle = 1000
	world := &model{}
	throttles := NewThrottles()
	throttles.guests = make(map[*throttled]bool)
	told := make(map[*modelled][]time.Duration)
	add := func(quota float64, begin, end time.Duration) *modelled {
		g := &modelled{world: world, quota: quota, begin: begin, end: end}
		world.guests = append(world.guests, g)
		watched := &throttled{c: g, told: func(time.Time, uint64) { told[g] = append(told[g], world.now) }}
		watched.setQuota(quota)
		throttles.guests[watched] = true
		return g
	}
	for range idle {
		add(0.5, 0, 0)
	}
	var busy []*modelled
	for i, quota := range []float64{0.02, 0.1, 0.5, 0.9, 1} {
		begin := 2*time.Second + time.Duration(i)*(4*time.Second+7*time.Millisecond)
		busy = append(busy, add(quota, begin, begin+2*time.Second))
	}
	for ; world.now < 30*time.Second; world.now += throttleTick {
		now := time.Unix(1000, 0).Add(world.now)
		if world.now%throttleLook == 0 {
			throttles.look(now)
		}
		throttles.tick(now)
		if world.now == time.Second {
			for _, g := range world.guests[:idle] {
				if g.reads > 2 { // the first look finds its start
					t.Fatalf("an idle guest was looked at %d times in a second", g.reads)
				}
			}
		}
	}
	if looks := int(30 * time.Second / throttleLook); world.reads > looks+1 {
		t.Errorf("the group was read %d times in %d looks", world.reads, looks)
	}
	for _, g := range busy {
		times := told[g]
		if g.quota >= 1 {
			if len(times) != 0 {
				t.Errorf("quota %v: told at %v", g.quota, times)
			}
			continue
		}
		if len(times) != 1 {
			t.Errorf("quota %v: told at %v", g.quota, times)
			continue
		}
		late := times[0] - g.begin - g.share()
		t.Logf("quota %v: told %v after it was held back", g.quota, late)
		if late > 100*time.Millisecond+throttleTick {
			t.Errorf("quota %v: told %v after it was held back", g.quota, late)
		}
	}
}
