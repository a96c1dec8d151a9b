package container

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/intelrdt"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/pkg/policy"
)

// cpuPeriod is the period of the cpu limit in microseconds, the kernel's default.
const cpuPeriod = 100_000

// Pause stops every process of a created or running container where it is, until
// Resume. It is no error if it is paused already; ErrNotRunning if it has stopped.
func (c *Container) Pause() error {
	status, err := c.currentStatus()
	if err != nil {
		return err
	}
	if status == libcontainer.Paused {
		return nil
	}
	if c.forked != nil {
		return errForked
	}
	if err := c.lc.Pause(); err != nil {
		return fmt.Errorf("pausing container %s: %w", c.id, err)
	}
	return nil
}

// Resume lets a paused container go on; ErrNotPaused if it is not paused.
func (c *Container) Resume() error {
	status, err := c.currentStatus()
	if err != nil {
		return err
	}
	if status != libcontainer.Paused {
		return fmt.Errorf("resuming container %s: %w", c.id, ErrNotPaused)
	}
	if err := c.lc.Resume(); err != nil {
		return fmt.Errorf("resuming container %s: %w", c.id, err)
	}
	return nil
}

// IntelRDT are the schemata of resctrl that can change while a container runs; ""
// leaves one as it is.
type IntelRDT struct {
	L3CacheSchema, MemBwSchema string
}

// Update changes the limits that can change while a container runs: memory, cpu
// and pids; a zero leaves one as it is, and nothing is written for it. Lowering memory
// below what is in use fails with an error that names both. After an error some of them
// may have changed. It is for the process that has made the container: what the state on
// disk says of limits stays as it was.
func (c *Container) Update(l policy.Limits) error {
	group := c.config().Cgroups
	changed := &cgroups.Resources{SkipDevices: true}
	if l.Mem > 0 {
		changed.Memory, changed.MemoryCheckBeforeUpdate = l.Mem, cgroups.IsCgroup2UnifiedMode()
		if group.MemorySwap != 0 {
			changed.MemorySwap = l.Mem
		}
	}
	if l.CPU > 0 {
		changed.CpuQuota = max(int64(l.CPU*cpuPeriod), 1000) // the kernel's smallest is 1 ms
		if group.CpuPeriod != cpuPeriod {
			changed.CpuPeriod = cpuPeriod
		}
	}
	if l.PIDs > 0 {
		changed.PidsLimit = &l.PIDs
	}
	manager, err := c.limiter(*group)
	if err == nil {
		err = manager.Set(changed)
	}
	if err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, err)
	}
	return nil
}

// limiter is what writes the limits of the container's cgroups. It keeps what it has set in
// the configuration that it was made with, which is not the container's.
func (c *Container) limiter(group cgroups.Cgroup) (cgroups.Manager, error) {
	return manager.NewWithPaths(&group, maps.Clone(c.groups()))
}

// Limit changes limits as Set does, and writes nothing down: whoever takes them for good has
// to, with the same limits.
func (c *Container) Limit(r *specs.LinuxResources) error {
	if c.forked != nil {
		return errForked
	}
	before, after := c.limited(nil), c.limited(r)
	manager, err := c.limiter(*after)
	if err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, err)
	}
	if err := manager.Set(after.Resources); err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, errors.Join(err, c.setBack(before)))
	}
	return nil
}

// setBack puts limits into force again after others failed, some of which may be in force.
func (c *Container) setBack(group *cgroups.Cgroup) error {
	manager, err := c.limiter(*group)
	if err == nil {
		err = manager.Set(group.Resources)
	}
	if err != nil {
		return fmt.Errorf("setting back the limits that it had: %w", err)
	}
	return nil
}

// limited is the container's cgroup with those of its limits changed that r names. Devices do
// not change; setting them again would open a moment without rules.
func (c *Container) limited(r *specs.LinuxResources) *cgroups.Cgroup {
	r = c.withoutSwap(r)
	group := *c.config().Cgroups
	limits := *group.Resources
	group.Resources = &limits
	limits.Unified = updateUnified(limits.Unified, r)
	updateMemory(&limits, r.Memory)
	updateCPU(&limits, r.CPU)
	updateBlockIO(&limits, r.BlockIO)
	if r.Pids != nil && r.Pids.Limit != nil {
		limits.PidsLimit = r.Pids.Limit
	}
	limits.SkipDevices = true
	return &group
}

// Settings are what can change of a container that exists. What is missing stays.
type Settings struct {
	Resources *specs.LinuxResources
	RDT       IntelRDT
	// Annotations take the place of those with the same names; OpenFiles is for
	// processes that come later, as Annotations are.
	Annotations map[string]string
	OpenFiles   *specs.POSIXRlimit
}

// Set changes the container's settings, and writes them down. Of Resources those limits
// change that are named; devices do not. A limit that the kernel refuses, or that cannot be
// written down, leaves the limits as they were.
func (c *Container) Set(s Settings) error {
	if c.forked != nil {
		return errForked
	}
	config := c.lc.Config()
	if err := updateRDT(&config, s.RDT); err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, err)
	}
	config.Labels = withAnnotations(config.Labels, s.Annotations)
	if s.OpenFiles != nil {
		config.Rlimits = withOpenFiles(config.Rlimits, *s.OpenFiles)
	}
	before := c.limited(nil)
	config.Cgroups = c.limited(s.Resources)
	err := c.lc.Set(config)
	config.Cgroups.SkipDevices = false // Exec refuses a container with it
	switch {
	case errors.Is(err, libcontainer.ErrNotRunning):
		if runs := c.checkStopped(); runs != nil {
			err = runs
		}
	case err != nil && c.lc.Config().Cgroups == config.Cgroups: // in force, and not written down
		err = errors.Join(err, c.setBack(before))
	}
	if err != nil {
		return fmt.Errorf("changing limits of container %s: %w", c.id, err)
	}
	return nil
}

// withoutSwap takes the limit of swap away where adaptResources has, for want of a file.
func (c *Container) withoutSwap(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return &specs.LinuxResources{}
	}
	_, policy := c.Annotations()[AnnotationPolicy]
	if has := c.config().Cgroups.Resources; !policy || r.Memory == nil || has.Memory <= 0 || has.MemorySwap != 0 {
		return r
	}
	out, memory := *r, *r.Memory
	memory.Swap, out.Memory = nil, &memory
	return &out
}

// withAnnotations puts annotations in the place of those with their names.
func withAnnotations(labels []string, annotations map[string]string) []string {
	out := slices.DeleteFunc(slices.Clone(labels), func(label string) bool {
		name, _, _ := strings.Cut(label, "=")
		_, replaced := annotations[name]
		return replaced
	})
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		out = append(out, name+"="+annotations[name])
	}
	return out
}

func withOpenFiles(limits []configs.Rlimit, limit specs.POSIXRlimit) []configs.Rlimit {
	out := slices.DeleteFunc(slices.Clone(limits), func(l configs.Rlimit) bool { return l.Type == unix.RLIMIT_NOFILE })
	return append(out, configs.Rlimit{Type: unix.RLIMIT_NOFILE, Hard: limit.Hard, Soft: limit.Soft})
}

// updateUnified adds to the files of cgroup2 that the bundle names, and takes those
// out of a controller that r changes in another way: they are written last, and
// would win.
func updateUnified(files map[string]string, r *specs.LinuxResources) map[string]string {
	out := maps.Clone(files)
	maps.DeleteFunc(out, func(name, _ string) bool {
		controller, _, _ := strings.Cut(name, ".")
		switch controller {
		case "memory":
			return r.Memory != nil && (r.Memory.Limit != nil || r.Memory.Swap != nil || r.Memory.Reservation != nil) && name != "memory.oom.group"
		case "cpu", "cpuset":
			return r.CPU != nil && *r.CPU != specs.LinuxCPU{}
		case "pids":
			return r.Pids != nil && r.Pids.Limit != nil
		case "io":
			return r.BlockIO != nil
		}
		return false
	})
	if out == nil {
		return r.Unified
	}
	maps.Copy(out, r.Unified)
	return out
}

func updateMemory(limits *cgroups.Resources, m *specs.LinuxMemory) {
	limits.MemoryCheckBeforeUpdate = false
	if m == nil {
		return
	}
	replace(&limits.Memory, m.Limit)
	replace(&limits.MemoryReservation, m.Reservation)
	replace(&limits.MemorySwap, m.Swap)
	replace(&limits.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
		limits.MemorySwap = 0 // no limit of memory: one of memory and swap would be refused
	}
}

// updateCPU changes what is named; a quota or a period of 0 is not.
func updateCPU(limits *cgroups.Resources, cpu *specs.LinuxCPU) {
	if cpu == nil {
		return
	}
	if cpu.Quota != nil && *cpu.Quota != 0 {
		limits.CpuQuota = *cpu.Quota
	}
	if cpu.Period != nil && *cpu.Period != 0 {
		limits.CpuPeriod = *cpu.Period
	}
	if cpu.Burst != nil {
		limits.CpuBurst = cpu.Burst
	}
	if cpu.Idle != nil {
		limits.CPUIdle = cpu.Idle
	}
	if cpu.Cpus != "" {
		limits.CpusetCpus = cpu.Cpus
	}
	if cpu.Mems != "" {
		limits.CpusetMems = cpu.Mems
	}
	switch {
	case cpu.Shares != nil:
		limits.CpuShares = *cpu.Shares
		limits.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
	case cpu.Idle != nil: // an idle group has no weight that could be written
		limits.CpuShares, limits.CpuWeight = 0, 0
	}
	replace(&limits.CpuRtPeriod, cpu.RealtimePeriod)
	replace(&limits.CpuRtRuntime, cpu.RealtimeRuntime)
}

func updateBlockIO(limits *cgroups.Resources, io *specs.LinuxBlockIO) {
	if io == nil {
		return
	}
	replace(&limits.BlkioWeight, io.Weight)
	replace(&limits.BlkioLeafWeight, io.LeafWeight)
	limits.BlkioWeightDevice = slices.Clone(limits.BlkioWeightDevice)
	for _, d := range io.WeightDevice {
		var weight, leaf uint16
		same := func(w *cgroups.WeightDevice) bool { return w.Major == d.Major && w.Minor == d.Minor }
		if at := slices.IndexFunc(limits.BlkioWeightDevice, same); at >= 0 {
			weight, leaf = limits.BlkioWeightDevice[at].Weight, limits.BlkioWeightDevice[at].LeafWeight
			limits.BlkioWeightDevice = slices.Delete(limits.BlkioWeightDevice, at, at+1)
		}
		replace(&weight, d.Weight)
		replace(&leaf, d.LeafWeight)
		limits.BlkioWeightDevice = append(limits.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf))
	}
	updateThrottle(&limits.BlkioThrottleReadBpsDevice, io.ThrottleReadBpsDevice)
	updateThrottle(&limits.BlkioThrottleWriteBpsDevice, io.ThrottleWriteBpsDevice)
	updateThrottle(&limits.BlkioThrottleReadIOPSDevice, io.ThrottleReadIOPSDevice)
	updateThrottle(&limits.BlkioThrottleWriteIOPSDevice, io.ThrottleWriteIOPSDevice)
}

func updateThrottle(list *[]*cgroups.ThrottleDevice, changes []specs.LinuxThrottleDevice) {
	*list = slices.Clone(*list)
	for _, d := range changes {
		*list = slices.DeleteFunc(*list, func(t *cgroups.ThrottleDevice) bool { return t.Major == d.Major && t.Minor == d.Minor })
		*list = append(*list, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
}

func updateRDT(config *configs.Config, rdt IntelRDT) error {
	switch {
	case rdt == IntelRDT{}:
		return nil
	case rdt.L3CacheSchema != "" && !intelrdt.IsCATEnabled():
		return errors.New("Intel RDT/CAT: l3 cache schema is not enabled") //nolint:staticcheck // runc's users match it
	case rdt.MemBwSchema != "" && !intelrdt.IsMBAEnabled():
		return errors.New("Intel RDT/MBA: memory bandwidth schema is not enabled") //nolint:staticcheck // runc's users match it
	case config.IntelRdt == nil:
		return errors.New("updating a non-existent Intel RDT configuration is not supported")
	}
	next := *config.IntelRdt
	if rdt.L3CacheSchema != "" {
		next.L3CacheSchema = rdt.L3CacheSchema
	}
	if rdt.MemBwSchema != "" {
		next.MemBwSchema = rdt.MemBwSchema
	}
	config.IntelRdt = &next
	return nil
}

func replace[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}
