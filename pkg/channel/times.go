package channel

import "time"

func (t *tagged) date() Date {
	d := Date{
		Year:  int(t.within(0, 1, 9999)),
		Month: int(t.within(1, 1, 12)),
		Day:   int(t.within(2, 1, 31)),
	}
	if last := time.Date(d.Year, time.Month(d.Month)+1, 0, 0, 0, 0, 0, time.UTC).Day(); t.err == nil && d.Day > last {
		t.fail("%s: day %d of a month of %d", t.name, d.Day, last)
	}
	return d
}

func (t *tagged) time(first int) Time {
	clock := Time{
		Hour:        int(t.within(first, 0, 23)),
		Minute:      int(t.within(first+1, 0, 59)),
		Second:      int(t.within(first+2, 0, 59)),
		Microsecond: int(t.within(first+3, 0, 999_999)),
		Fold:        int(t.within(first+4, 0, 1)),
	}
	if zone := t.args[first+5]; zone != nil {
		found, ok := zone.(TimeZone)
		if !ok {
			t.fail("%s: the last argument is not a timezone", t.name)
		}
		clock.Zone = &found
	}
	return clock
}

func readTimeDelta(t *tagged) any {
	return TimeDelta{
		Days:         int(t.within(0, -999_999_999, 999_999_999)),
		Seconds:      int(t.within(1, 0, 86_399)),
		Microseconds: int(t.within(2, 0, 999_999)),
	}
}

const dayMicroseconds = 86_400_000_000

func readTimeZone(t *tagged) any {
	z := TimeZone{Offset: t.within(0, 1-dayMicroseconds, dayMicroseconds-1)}
	if t.args[1] != nil {
		z.Name, z.HasName = t.str(1), true
	}
	return z
}
