package container

import (
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/types"
)

// StatsEvent is the document that `events` prints, in the form runc's users read:
// {"type":"stats","id":…,"data":{cpu,memory,pids,blkio,hugetlb,…}}.
func (c *Container) StatsEvent() (any, error) {
	if c.forked != nil {
		return nil, errForked
	}
	ls, err := c.lc.Stats()
	if err != nil {
		return nil, fmt.Errorf("reading statistics of container %s: %w", c.id, err)
	}
	var s types.Stats
	if cg := ls.CgroupStats; cg != nil {
		cpuStats(&s.CPU, &cg.CpuStats)
		memoryStats(&s.Memory, &cg.MemoryStats)
		blkioStats(&s.Blkio, &cg.BlkioStats)
		s.Pids.Current, s.Pids.Limit = cg.PidsStats.Current, cg.PidsStats.Limit
		s.CPUSet = types.CPUSet(cg.CPUSetStats)
		s.Hugetlb = make(map[string]types.Hugetlb, len(cg.HugetlbStats))
		for size, h := range cg.HugetlbStats {
			s.Hugetlb[size] = types.Hugetlb{Usage: h.Usage, Max: h.MaxUsage, Failcnt: h.Failcnt}
		}
	}
	s.NetworkInterfaces = ls.Interfaces
	return types.Event{Type: "stats", ID: c.id, Data: &s}, nil
}

// OOMEvent is what `events` prints when the memory limit killed a process.
func (c *Container) OOMEvent() any { return types.Event{Type: "oom", ID: c.id} }

func cpuStats(out *types.Cpu, in *cgroups.CpuStats) {
	out.Usage = types.CpuUsage{
		Total:        in.CpuUsage.TotalUsage,
		Percpu:       in.CpuUsage.PercpuUsage,
		PercpuKernel: in.CpuUsage.PercpuUsageInKernelmode,
		PercpuUser:   in.CpuUsage.PercpuUsageInUsermode,
		Kernel:       in.CpuUsage.UsageInKernelmode,
		User:         in.CpuUsage.UsageInUsermode,
	}
	out.Throttling = types.Throttling{
		Periods:          in.ThrottlingData.Periods,
		ThrottledPeriods: in.ThrottlingData.ThrottledPeriods,
		ThrottledTime:    in.ThrottlingData.ThrottledTime,
	}
	out.PSI = in.PSI
}

func memoryStats(out *types.Memory, in *cgroups.MemoryStats) {
	entry := func(d cgroups.MemoryData) types.MemoryEntry {
		return types.MemoryEntry{Limit: d.Limit, Usage: d.Usage, Max: d.MaxUsage, Failcnt: d.Failcnt}
	}
	out.Cache = in.Cache
	out.Usage, out.Swap = entry(in.Usage), entry(in.SwapUsage)
	out.Kernel, out.KernelTCP = entry(in.KernelUsage), entry(in.KernelTCPUsage)
	out.Raw, out.PSI = in.Stats, in.PSI
}

func blkioStats(out *types.Blkio, in *cgroups.BlkioStats) {
	entries := func(list []cgroups.BlkioStatEntry) []types.BlkioEntry {
		all := make([]types.BlkioEntry, 0, len(list))
		for _, e := range list {
			all = append(all, types.BlkioEntry(e))
		}
		return all
	}
	out.IoServiceBytesRecursive = entries(in.IoServiceBytesRecursive)
	out.IoServicedRecursive = entries(in.IoServicedRecursive)
	out.IoQueuedRecursive = entries(in.IoQueuedRecursive)
	out.IoServiceTimeRecursive = entries(in.IoServiceTimeRecursive)
	out.IoWaitTimeRecursive = entries(in.IoWaitTimeRecursive)
	out.IoMergedRecursive = entries(in.IoMergedRecursive)
	out.IoTimeRecursive = entries(in.IoTimeRecursive)
	out.SectorsRecursive = entries(in.SectorsRecursive)
	out.PSI = in.PSI
}
