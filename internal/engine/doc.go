// Package engine decides what a policy means for a container that an engine made:
// podman, Docker, containerd, Kubernetes, of any image.
//
// Such a container has its files, mounts and network from the engine. A policy on it
// filters, and adds nothing: no mount, no endpoint, no listener. [Narrow] is a pure
// function of the engine's OCI specification, the policy and what is known of the host.
// Each setting of its result is the engine's or stricter; it reports what holds each
// rule, and fails, naming rule, mechanism and way out, for a rule that nothing holds
// (with allow_degraded it says so in the report instead).
//
//	rule            becomes
//	mem cpu pids    cgroup limits, the smaller of both; no swap, bursts or real time
//	open_files      RLIMIT_NOFILE, the smaller of both
//	cpu_ms wall_ms  psi-runtime attend kills the container
//	tcp             eBPF at the container's cgroup; addresses only
//	fs              host directories that the engine mounts have to be allowed at their
//	                place in the container; read-only where the rule is; a rule for a
//	                part of one is a Landlock domain; deny masks the path
//	seccomp: python CPython's list of system calls, stacked by psi-init
//	tmp             the size of a tmpfs at /tmp
//	imports         files of a psi image that the list hides are masked; an error for others
//	message output  the agent of a psi image; nobody on the host
//
// The image's own files are the container's own, whatever the fs rules say. So that the
// rules cannot be got around, such a container has no_new_privs, only capabilities and
// devices that lead nowhere, namespaces of its own, a masked /proc, and a filter on the
// system calls that make mounts, namespaces and odd sockets ([Hold]).
//
// [Config] is /etc/psi/runtime.toml: which policies are mandatory, which annotations
// count. [Settle] chooses the policy of a container by it.
//
// A container that runs can be given another policy, within what its annotation could
// have asked for and what can change ([Record.Reload]). [Given] is what the engine asked
// for before it was narrowed. Where no LSM programs hold its file rules, [Record.Remounting]
// is what has to be done to its mounts.
//
// The package starts nothing and changes no kernel state. Bundles of psi's own, which
// get everything from their policy, are pkg/bundle's business, not this package's.
package engine
