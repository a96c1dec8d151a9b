package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// random draws a value, often one of the corners.
func random(r *rand.Rand, corners ...int64) *int64 {
	v := corners[r.IntN(len(corners))]
	switch r.IntN(4) {
	case 0:
		return nil
	case 1:
		v = r.Int64N(1 << uint(1+r.IntN(50)))
	}
	return &v
}

func randomResources(r *rand.Rand) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	truth := true
	if r.IntN(4) > 0 {
		out.Memory = &specs.LinuxMemory{Limit: random(r, -1, 0, 64<<20, 1<<40), Swap: random(r, -1, 0, 1<<30), Reservation: random(r, -1, 0, 1<<40), DisableOOMKiller: &truth}
	}
	if r.IntN(4) > 0 {
		period := uint64(1000 + r.IntN(1000000))
		burst := uint64(r.IntN(100000))
		out.CPU = &specs.LinuxCPU{Quota: random(r, -1, 0, 1000, 50000, 100000, 1<<40), Burst: &burst, RealtimeRuntime: random(r, 1, 950000)}
		if r.IntN(2) == 0 {
			out.CPU.Period = &period
		}
	}
	if r.IntN(4) > 0 {
		out.Pids = &specs.LinuxPids{Limit: random(r, -1, 0, 1, 64, 4096)}
	}
	values := []string{"max", "1", "1048576", "99999999999", "50000 100000", "max 100000", "10000000 1000"}
	for _, file := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.max.burst", "io.weight", "memory.oom.group"} {
		if r.IntN(5) == 0 {
			if out.Unified == nil {
				out.Unified = map[string]string{}
			}
			v := values[r.IntN(len(values))]
			if file != "cpu.max" {
				v = values[r.IntN(4)]
			}
			out.Unified[file] = v
		}
	}
	return out
}

func deref(v *int64) int64 {
	if v == nil {
		return 0
	}
	return *v
}

// limitOf is what the engine asked for: the smallest of its fields and files.
func limitOf(field *int64, unified map[string]string, file string) float64 {
	limit := math.Inf(1)
	if v := deref(field); v > 0 {
		limit = float64(v)
	}
	var n float64
	if _, err := fmt.Sscan(unified[file], &n); err == nil {
		limit = min(limit, n)
	}
	return limit
}

// Whatever an engine asks for, the result is within the policy and within what it
// asked for, and narrowing again changes nothing.
func TestLimitsAreNeverWidened(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		mem, cpu, pids := 8<<20+r.Int64N(1<<31), float64(1+r.IntN(400))/100, 1+r.Int64N(500)
		p := parse(t, fmt.Sprintf("mem: %d\ncpu: %g\npids: %d", mem, cpu, pids))
		asked := randomResources(r)
		n := narrow(t, engineSpec(func(s *specs.Spec) { s.Linux.Resources = asked }), p)
		got := n.Spec.Linux.Resources
		fail := func(what string) {
			t.Fatalf("%s: mem %d cpu %g pids %d; asked memory %+v cpu %+v pids %+v unified %v; got memory %+v %d cpu %d/%d pids %d unified %v", what, mem, cpu, pids,
				asked.Memory, asked.CPU, asked.Pids, asked.Unified, got.Memory, *got.Memory.Limit, *got.CPU.Quota, *got.CPU.Period, *got.Pids.Limit, got.Unified)
		}
		var field *int64
		if asked.Memory != nil {
			field = asked.Memory.Limit
		}
		if want := min(float64(mem), limitOf(field, asked.Unified, "memory.max")); float64(*got.Memory.Limit) != want || *got.Memory.Swap != *got.Memory.Limit {
			fail("memory")
		}
		if got.Memory.DisableOOMKiller != nil || got.Memory.Reservation != nil && *got.Memory.Reservation > *got.Memory.Limit {
			fail("memory")
		}
		field = nil
		if asked.Pids != nil {
			field = asked.Pids.Limit
		}
		if float64(*got.Pids.Limit) != min(float64(pids), limitOf(field, asked.Unified, "pids.max")) {
			fail("pids")
		}
		share := float64(*got.CPU.Quota) / float64(*got.CPU.Period)
		if share > askedCPU(asked)*1.0001 || share > cpu*1.01 || share < min(cpu, askedCPU(asked))*0.9 || got.CPU.Burst != nil || got.CPU.RealtimeRuntime != nil {
			fail("cpu")
		}
		for file := range got.Unified {
			if file != "io.weight" {
				fail("unified")
			}
		}
		if len(got.Devices) != 1 || got.Devices[0].Allow {
			fail("devices")
		}
		if again := narrow(t, n.Spec, p); !reflect.DeepEqual(again.Spec, n.Spec) {
			fail("again")
		}
	}
}

func askedCPU(r *specs.LinuxResources) float64 {
	share, period := math.Inf(1), float64(cpuPeriod)
	if r.CPU != nil && r.CPU.Period != nil {
		period = float64(*r.CPU.Period)
	}
	if r.CPU != nil && deref(r.CPU.Quota) > 0 {
		share = float64(*r.CPU.Quota) / period
	}
	var quota, per float64
	if n, _ := fmt.Sscan(r.Unified["cpu.max"], &quota, &per); n >= 1 {
		if n == 1 {
			per = cpuPeriod
		}
		share = min(share, quota/per)
	}
	return share
}

func TestUpdateIsNarrowed(t *testing.T) {
	p := parse(t, "mem: 64MiB\ncpu: 0.5\npids: 10")
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		ask  specs.LinuxResources
		want string
	}{
		"more memory":     {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(1 << 40), Swap: n(-1)}}, "mem 67108864 swap 67108864"},
		"less memory":     {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(32 << 20)}}, "mem 33554432 swap 33554432"},
		"unlimited":       {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(-1)}, Pids: &specs.LinuxPids{Limit: n(-1)}}, "mem 67108864 swap 67108864 pids 10"},
		"swap only":       {specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: n(1 << 40)}}, ""},
		"0 is unchanged":  {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n(0)}, Pids: &specs.LinuxPids{Limit: n(0)}, CPU: &specs.LinuxCPU{Quota: n(0)}}, ""},
		"cpu":             {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: n(-1)}}, "cpu 50000"},
		"by unified file": {specs.LinuxResources{Unified: map[string]string{"memory.max": "max", "pids.max": "5"}}, "mem 67108864 swap 67108864 pids 5"},
	} {
		got, err := (&Record{Policy: p}).Update(&tc.ask)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var words []string
		if m := got.Memory; m != nil && m.Limit != nil {
			words = append(words, fmt.Sprint("mem ", *m.Limit))
		}
		if m := got.Memory; m != nil && m.Swap != nil {
			words = append(words, fmt.Sprint("swap ", *m.Swap))
		}
		if c := got.CPU; c != nil && c.Quota != nil && *c.Quota != 0 {
			words = append(words, fmt.Sprint("cpu ", *c.Quota))
		}
		if got.Pids != nil {
			words = append(words, fmt.Sprint("pids ", *got.Pids.Limit))
		}
		if text := strings.Join(words, " "); text != tc.want || len(got.Unified) > 0 {
			t.Errorf("%s: %s, want %s", name, text, tc.want)
		}
	}
	for _, file := range []string{"cgroup.procs", "../memory.max", "cgroup.subtree_control"} {
		if _, err := (&Record{Policy: p}).Update(&specs.LinuxResources{Unified: map[string]string{file: "1"}}); err == nil {
			t.Errorf("%s: no error", file)
		}
	}
}
