package container

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/psi-runtime/psi/internal/confine"
)

// Features is the OCI features document: what this build can do, whatever the
// host allows.
func Features() features.Features {
	yes, no := true, false
	f := features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         configs.KnownHookNames(),
		MountOptions:  specconv.KnownMountOptions(),
		Annotations: map[string]string{
			"org.opencontainers.runc.checkpoint.enabled": "true", // where engines look for it
		},
		Linux: &features.Linux{
			Namespaces:   specconv.KnownNamespaces(),
			Capabilities: capabilities.KnownCapabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &yes, Rdma: &yes},
			Apparmor:     &features.Apparmor{Enabled: &yes},
			Selinux:      &features.Selinux{Enabled: &yes},
			IntelRdt:     &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MemoryPolicy: &features.MemoryPolicy{
				Modes: specconv.KnownMemoryPolicyModes(),
				Flags: specconv.KnownMemoryPolicyFlags(),
			},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
			Seccomp:         &features.Seccomp{Enabled: &no},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"bundle", "org.systemd.property.", "org.criu.config", "io.psi."},
	}
	if seccomp.Enabled {
		f.Linux.Seccomp = &features.Seccomp{
			Enabled:        &yes,
			Actions:        seccomp.KnownActions(),
			Operators:      seccomp.KnownOperators(),
			Archs:          slices.DeleteFunc(seccomp.KnownArchs(), func(arch string) bool { return !takesArch(arch) }),
			KnownFlags:     seccomp.KnownFlags(),
			SupportedFlags: seccomp.SupportedFlags(),
		}
		f.Annotations["io.github.seccomp.libseccomp.version"] = SeccompVersion()
	}
	return f
}

// takesArch reports whether a filter of this build can be of an architecture: libcontainer knows the names
// of all, libseccomp those of its version, and the kernel takes those of one byte order.
func takesArch(name string) bool {
	arch, err := seccomp.ConvertStringToArch(name)
	return err == nil && confine.TakesArch(arch)
}

// SeccompVersion is the version of libseccomp that is linked in; "" without.
func SeccompVersion() string {
	major, minor, patch := seccomp.Version()
	if major+minor+patch == 0 {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", major, minor, patch)
}

// ExampleSpec is a specification to start from: a shell in a container with the
// usual namespaces. With rootless it can be run by the calling user.
func ExampleSpec(rootless bool) *specs.Spec {
	s := specconv.Example()
	if rootless {
		specconv.ToRootless(s)
	}
	return s
}
