package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Limits says how much a guest may use. All of them are enforced.
type Limits struct {
	Mem       int64         // bytes of memory, page cache and /tmp included (key mem)
	CPU       float64       // processors, 0.5 is half of one (key cpu)
	CPUTime   time.Duration // processor time in total, whole milliseconds; 0: no such limit (key cpu_ms)
	Wall      time.Duration // lifetime, whole milliseconds; 0: no such limit (key wall_ms)
	PIDs      int64         // processes and threads at once (key pids)
	OpenFiles int64         // descriptors of one process, RLIMIT_NOFILE (key open_files)
	Tmp       int64         // bytes of the guest's private /tmp; 0: nothing can be written there (key tmp)
	Message   int64         // bytes of the largest value on the channel (key message)
	Output    int64         // bytes of stdout and stderr together; what is beyond is cut (key output)
	NetConns  int64         // connections at once, see Connections (key net_conns)
	NetRate   int64         // bytes a second of all connections, both ways together; 0: no such limit (key net_rate)
	NetBytes  int64         // bytes of all connections in total, both ways together; 0: no such limit (key net_bytes)
}

// Connections is how many connections the guest may have at once: one for each MiB of
// its memory, from 16 to 1024, and no more than NetConns if that is not 0. What the
// sockets of all connections hold is the host's memory, as much as the guest's at most,
// and not always counted as the guest's.
func (l Limits) Connections() int64 {
	most := min(max(l.Mem/mib, 16), 1024)
	if l.NetConns > 0 {
		return min(l.NetConns, most)
	}
	return most
}

// Units of sizes in documents and messages, in bytes.
const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	// maxSize is the largest size: far above any machine, and exact in every
	// JSON reader, including those that hold numbers as floating point.
	maxSize = int64(1) << 50
	// maxMillis is the largest time: one year, in milliseconds.
	maxMillis = int64(365 * 24 * time.Hour / time.Millisecond)

	minCPU, maxCPU = 0.01, 1024.0 // one millisecond in each period of 100 ms
)

func defaultLimits() Limits {
	return Limits{
		Mem:       256 * mib,
		CPU:       1,
		PIDs:      64,
		OpenFiles: 256,
		Tmp:       64 * mib,
		Message:   64 * mib,
		Output:    16 * mib,
	}
}

// limit describes one whole-number limit: its key, how documents write it, its
// range, and where it lives. The one table drives parsing, checking and the
// canonical form.
type limit struct {
	key      string
	size     bool  // bytes: a document may write a unit
	min, max int64 // of every value but an allowed zero
	zero     bool  // 0 is allowed
	// unlimited: 0 is no limit; so it is with every time.
	unlimited bool
	field     func(*Limits) *int64
	time      func(*Limits) *time.Duration // instead of field, in milliseconds
}

func limitTable() []limit {
	return []limit{
		// Python with the agent in it does not start in less.
		{key: "mem", size: true, min: 8 * mib, max: maxSize, field: func(l *Limits) *int64 { return &l.Mem }},
		{key: "cpu_ms", min: 1, max: maxMillis, zero: true, time: func(l *Limits) *time.Duration { return &l.CPUTime }},
		{key: "wall_ms", min: 1, max: maxMillis, zero: true, time: func(l *Limits) *time.Duration { return &l.Wall }},
		{key: "pids", min: 1, max: 1 << 22, field: func(l *Limits) *int64 { return &l.PIDs }},
		// libcontainer's init is held to them while it puts the guest together: with a volume and a
		// terminal it opens 19.
		{key: "open_files", min: 20, max: 1 << 20, field: func(l *Limits) *int64 { return &l.OpenFiles }},
		{key: "tmp", size: true, min: 64 * kib, max: maxSize, zero: true, field: func(l *Limits) *int64 { return &l.Tmp }},
		{key: "message", size: true, min: kib, max: gib, field: func(l *Limits) *int64 { return &l.Message }},
		{key: "output", size: true, min: kib, max: maxSize, zero: true, field: func(l *Limits) *int64 { return &l.Output }},
		{key: "net_conns", min: 1, max: 1024, zero: true, field: func(l *Limits) *int64 { return &l.NetConns }},
		{key: "net_rate", size: true, min: kib, max: maxSize, zero: true, unlimited: true, field: func(l *Limits) *int64 { return &l.NetRate }},
		{key: "net_bytes", size: true, min: 1, max: maxSize, zero: true, unlimited: true, field: func(l *Limits) *int64 { return &l.NetBytes }},
	}
}

// set stores value, in the unit of the document.
func (k limit) set(l *Limits, value int64) {
	if k.time != nil {
		*k.time(l) = time.Duration(value) * time.Millisecond
		return
	}
	*k.field(l) = value
}

// get returns the value in the unit of the document.
func (k limit) get(l *Limits) int64 {
	if k.time != nil {
		return k.time(l).Milliseconds()
	}
	return *k.field(l)
}

// format writes a value as a document may.
func (k limit) format(value int64) string {
	if k.size {
		return formatSize(value)
	}
	return strconv.FormatInt(value, 10)
}

// check reports a value that is out of range. written is how the user wrote it.
func (k limit) check(value int64, written string) *Error {
	if value == 0 && k.zero || value >= k.min && value <= k.max {
		return nil
	}
	allowed := fmt.Sprintf("write a number from %d to %d", k.min, k.max)
	if k.size {
		allowed = fmt.Sprintf("write a size from %s to %s", formatSize(k.min), formatSize(k.max))
	}
	if k.zero {
		allowed += ", or 0"
	}
	return &Error{Key: k.key, Value: written, Rule: "out of range", WayOut: allowed}
}

// checkCPU reports a number of processors that is out of range.
func checkCPU(cpu float64, written string) *Error {
	if cpu >= minCPU && cpu <= maxCPU { // false for NaN
		return nil
	}
	return &Error{Key: "cpu", Value: written, Rule: "out of range",
		WayOut: fmt.Sprintf("write a number of processors from %g to %g, such as 0.5", minCPU, maxCPU)}
}

// checkLimits reports the first limit that is out of range.
func checkLimits(l Limits) *Error {
	if err := checkCPU(l.CPU, strconv.FormatFloat(l.CPU, 'g', -1, 64)); err != nil {
		return err
	}
	for _, k := range limitTable() {
		if k.time == nil {
			value := *k.field(&l)
			if err := k.check(value, strconv.FormatInt(value, 10)); err != nil {
				return err
			}
			continue
		}
		d := *k.time(&l)
		if d%time.Millisecond != 0 {
			return &Error{Key: k.key, Value: d.String(), Rule: "is not a whole number of milliseconds",
				WayOut: "round it to time.Millisecond"}
		}
		if err := k.check(d.Milliseconds(), d.String()); err != nil {
			return err
		}
	}
	return nil
}

// formatSize writes bytes in the largest binary unit that is exact.
func formatSize(bytes int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"GiB", gib}, {"MiB", mib}, {"KiB", kib}} {
		if bytes != 0 && bytes%u.bytes == 0 {
			return strconv.FormatInt(bytes/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

// parseSize reads a size with its unit, such as "256MiB" or "1.5GB". The result
// is a whole number of bytes; the range is the caller's to check.
func parseSize(text string) (int64, *Error) {
	const wayOut = "write a number and B, kB, MB, GB (powers of 1000), KiB, MiB or GiB (powers of 1024), such as 256MiB"
	end := 0
	for end < len(text) && (text[end] >= '0' && text[end] <= '9' || text[end] == '.') {
		end++
	}
	number, unit := text[:end], text[end:]
	whole, fraction, dotted := strings.Cut(number, ".")
	if whole == "" || dotted && fraction == "" || strings.Contains(fraction, ".") || len(whole) > 15 || len(fraction) > 9 {
		return 0, &Error{Value: text, Rule: "is not a size", WayOut: wayOut}
	}
	if unit == "" {
		return 0, &Error{Value: text, Rule: "has no unit", WayOut: wayOut + ", or a bare number of bytes without quotes"}
	}
	bytes, ok := unitBytes(unit)
	if !ok {
		units := []string{"MiB", "GiB", "KiB", "MB", "GB", "kB", "B"}
		return 0, &Error{Value: text, Rule: fmt.Sprintf("unknown unit %s", quote(unit)), WayOut: wayOut, Nearest: nearest(unit, units)}
	}
	n, _ := strconv.ParseInt(whole, 10, 64) // at most 15 digits
	if n > math.MaxInt64/bytes-1 {
		n = math.MaxInt64/bytes - 1 // out of every range, and not overflowing
	}
	size := n * bytes
	if dotted {
		part, _ := strconv.ParseInt(fraction, 10, 64) // at most 9 digits, times 2^30 still fits
		scale := int64(math.Pow10(len(fraction)))
		if part*bytes%scale != 0 {
			return 0, &Error{Value: text, Rule: "is not a whole number of bytes", WayOut: "write it in a smaller unit"}
		}
		size += part * bytes / scale
	}
	return size, nil
}

func unitBytes(unit string) (int64, bool) {
	switch unit {
	case "B":
		return 1, true
	case "kB":
		return 1000, true
	case "MB":
		return 1000 * 1000, true
	case "GB":
		return 1000 * 1000 * 1000, true
	case "KiB":
		return kib, true
	case "MiB":
		return mib, true
	case "GiB":
		return gib, true
	}
	return 0, false
}
