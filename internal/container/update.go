package container

import (
	"fmt"

	"github.com/opencontainers/cgroups"

	"github.com/psi-runtime/psi/pkg/policy"
)

// cpuPeriod is the period of the cpu limit in microseconds, the kernel's default.
const cpuPeriod = 100_000

// Update changes the limits that can change while a container runs: memory, cpu
// and pids; a zero leaves one as it is. Lowering memory below what is in use fails
// with an error that names both, and leaves the old limits.
func (c *Container) Update(l policy.Limits) error {
	config := c.lc.Config()
	group, resources := *config.Cgroups, *config.Cgroups.Resources
	group.Resources, config.Cgroups = &resources, &group
	if l.Mem > 0 {
		resources.Memory = l.Mem
		if resources.MemorySwap != 0 {
			resources.MemorySwap = l.Mem
		}
		resources.MemoryCheckBeforeUpdate = cgroups.IsCgroup2UnifiedMode()
	}
	if l.CPU > 0 {
		resources.CpuPeriod = cpuPeriod
		// The kernel's smallest quota is 1 ms.
		resources.CpuQuota = max(int64(l.CPU*cpuPeriod), 1000)
	}
	if l.PIDs > 0 {
		resources.PidsLimit = &l.PIDs
	}
	// Devices do not change; setting them again would open a moment without rules.
	resources.SkipDevices = true
	err := c.lc.Set(config)
	resources.SkipDevices = false // Exec refuses a container with it
	if err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, err)
	}
	return nil
}
