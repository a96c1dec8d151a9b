package bundle

import (
	"strconv"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/psi-runtime/psi/pkg/policy"
)

const (
	rootDir    = "rootfs"   // the root filesystem, in a bundle
	scriptCopy = "entry.py" // the script entry, in a bundle
)

// Sizes of the small writable file systems, in bytes. What is in them counts as
// the guest's memory too.
const (
	devSize = 64 << 10
	shmSize = 16 << 20 // semaphores and shared memory of multiprocessing
)

// mounts lists what the guest sees above its root, in the order of mounting.
func mounts(l policy.Limits, v View, e Entry) []specs.Mount {
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", devSize, "0755", "ro", "nosuid", "noexec", "strictatime"),
		tmpfs("/dev/shm", shmSize, "1777", "nosuid", "noexec", "nodev"),
		tmp(l),
	}
	if e.Script != "" {
		out = append(out, bind(scriptCopy, entryFile, false))
	}
	for _, m := range v.Mounts {
		mount := bind(m.Source, m.Dest, m.Write)
		// Files keep their owners on the host; in the guest the client's are the
		// guest's own, and everybody else's are nobody's.
		mount.Options = append(mount.Options, "idmap")
		mount.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: PlaceholderID, Size: 1}}
		mount.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: PlaceholderID, Size: 1}}
		out = append(out, mount)
	}
	return out
}

// tmp is the guest's /tmp. A tmpfs takes the size 0 for "no limit": a policy
// that allows no byte gets a file system that cannot be written.
func tmp(l policy.Limits) specs.Mount {
	if l.Tmp == 0 {
		return tmpfs("/tmp", devSize, "1777", "ro", "nosuid", "noexec", "nodev")
	}
	return tmpfs("/tmp", l.Tmp, "1777", "nosuid", "noexec", "nodev")
}

func tmpfs(dest string, size int64, mode string, options ...string) specs.Mount {
	options = append(options, "mode="+mode, "size="+strconv.FormatInt(size, 10))
	return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options}
}

func bind(source, dest string, write bool) specs.Mount {
	access := "ro"
	if write {
		access = "rw"
	}
	return specs.Mount{Destination: dest, Type: "bind", Source: source,
		Options: []string{"bind", access, "nosuid", "nodev", "noexec", "private"}}
}

// MaskedPaths hide what /proc tells about the host. runc's list, and: interrupts
// (keystrokes and network traffic can be told from it), the boot command line,
// kernel symbols, modules and configuration, disks and swap, buses, and pressure
// (whose files anybody may open for writing, to arm triggers in the kernel).
func MaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/bus", "/proc/cmdline", "/proc/config.gz", "/proc/diskstats", "/proc/interrupts",
		"/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/modules", "/proc/partitions",
		"/proc/pressure", "/proc/sched_debug", "/proc/scsi", "/proc/swaps", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// ReadonlyPaths hold what a root user of a guest could change on the host.
func ReadonlyPaths() []string {
	return []string{"/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// isText reports text that JSON carries unchanged.
func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError)
}
