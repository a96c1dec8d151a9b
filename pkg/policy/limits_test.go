package policy

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0B": 0, "1B": 1, "1kB": 1000, "1MB": 1e6, "1GB": 1e9, "1KiB": 1 << 10, "256MiB": 256 << 20, "4GiB": 4 << 30,
		"1.5GiB": 3 << 29, "0.5KiB": 512, "1.000000001GB": 1e9 + 1, "1.50MB": 1500000,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s = %d, %v, want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                     "is not a size",
		"MiB":                  "is not a size",
		"-1MiB":                "is not a size",
		".5GiB":                "is not a size",
		"1.GiB":                "is not a size",
		"1..5GiB":              "is not a size",
		"1.5.5GiB":             "is not a size",
		" 1GiB":                "is not a size",
		"1000000000000000000B": "is not a size",
		"256":                  "has no unit",
		"256M":                 `(did you mean "MB"?)`,
		"256mb":                `(did you mean "MB"?)`,
		"256Mib":               `(did you mean "MiB"?)`,
		"256 MiB":              `unknown unit " MiB"`,
		"1KB":                  `(did you mean "kB"?)`,
		"1e3B":                 `unknown unit "e3B"`,
		"0x10B":                `unknown unit "x10B"`,
		"1TiB":                 "unknown unit",
		"1.5B":                 "is not a whole number of bytes",
		"0.0001KiB":            "is not a whole number of bytes",
	} {
		size, err := parseSize(text)
		if err == nil {
			t.Errorf("%q is accepted as %d", text, size)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want …%s…", text, err, want)
		}
	}
	if size, err := parseSize("999999999999999GiB"); err != nil || size < maxSize {
		t.Errorf("a size that overflows is %d, %v", size, err)
	}
}

func TestWithLimits(t *testing.T) {
	want := Limits{Mem: gib, CPU: 0.5, CPUTime: 10 * time.Second, Wall: time.Minute, PIDs: 1, OpenFiles: 20,
		Tmp: 0, Message: kib, Output: 0}
	p, err := Defaults().WithLimits(want)
	if err != nil || p.Limits() != want {
		t.Fatalf("%+v, %v", p.Limits(), err)
	}
	for _, test := range []struct {
		change func(*Limits)
		want   string
	}{
		{func(l *Limits) { *l = Limits{} }, "cpu"},
		{func(l *Limits) { l.Mem = 0 }, `mem: "0": out of range: write a size from 8MiB to 1048576GiB`},
		{func(l *Limits) { l.Mem = -1 }, `mem: "-1": out of range`},
		{func(l *Limits) { l.Mem = math.MaxInt64 }, "mem"},
		{func(l *Limits) { l.CPU = 0 }, "cpu"},
		{func(l *Limits) { l.CPU = -1 }, "cpu"},
		{func(l *Limits) { l.CPU = math.NaN() }, "cpu"},
		{func(l *Limits) { l.CPU = math.Inf(1) }, "cpu"},
		{func(l *Limits) { l.CPU = 0.009 }, "cpu"},
		{func(l *Limits) { l.CPUTime = -time.Second }, `cpu_ms: "-1s": out of range: write a number from 1 to 31536000000, or 0`},
		{func(l *Limits) { l.CPUTime = time.Microsecond }, `cpu_ms: "1µs": is not a whole number of milliseconds`},
		{func(l *Limits) { l.Wall = math.MaxInt64 }, "wall_ms"},
		{func(l *Limits) { l.PIDs = 0 }, "pids"},
		{func(l *Limits) { l.OpenFiles = 19 }, `open_files: "19": out of range: write a number from 20 to 1048576`},
		{func(l *Limits) { l.Tmp = 1 }, `tmp: "1": out of range: write a size from 64KiB to 1048576GiB, or 0`},
		{func(l *Limits) { l.Message = 0 }, "message"},
		{func(l *Limits) { l.Message = 2 * gib }, "message"},
		{func(l *Limits) { l.Output = -1 }, "output"},
	} {
		l := defaultLimits()
		test.change(&l)
		p, err := Defaults().WithLimits(l)
		var e *Error
		if !errors.As(err, &e) || e.WayOut == "" || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %s…", l, err, test.want)
		}
		if p.Limits() != defaultLimits() {
			t.Errorf("an error changed the limits to %+v", p.Limits())
		}
	}
}
