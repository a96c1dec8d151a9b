// Package enforce holds a guest to its network policy in the kernel: eBPF
// programs at the guest's cgroup, which refuse (EPERM) every destination that
// the policy does not list, whatever the guest's network looks like.
//
// Under psi's own network (internal/netproxy) the guest could not reach anything
// else anyway; this is the second wall, and the one that counts what it stops.
// Where an engine made the network it is the only one.
//
//	hook                    what it holds
//	connect4, connect6      TCP connect and MSG_FASTOPEN: the policy's endpoints
//	sendmsg4, sendmsg6      datagrams: none
//	bind4, bind6            bind: none, a guest has no port of its own
//	sock_create             sockets of AF_INET and AF_INET6: TCP only
//	connect_unix, sendmsg_unix   names of AF_UNIX sockets: none ([Programs.HoldPairs])
//
// A socket belongs to the cgroup of the process that made it. So these programs
// say nothing about a socket that is handed to a guest, nor about other families
// (AF_PACKET, AF_NETLINK, AF_VSOCK, AF_UNIX: the seccomp filter's business), nor
// about listen without bind.
//
// # How a policy gets into the kernel
//
// [Load] finds the programs and their maps in the kernel, or puts them there and pins them, once for a
// host (network_pins.go). [Programs.Attach] attaches them to one cgroup, and gives the guest a
// policy number, which guests of a process that may do the same share; all that differs between guests
// is what the maps say:
//
//	guests    cgroup → owner, policy number. Cgroup storage: starts as 0, dies with the
//	          cgroup, and is the guest's children's too.
//	accounts  cgroup → how many calls were refused, and its token bucket
//
// and of the maps of its owner, the process that holds it (owner.go):
//
//	ports     (port, policy number) → the range that the policy tells apart
//	endpoints (range, policy number, address prefix) → allow or deny, by the
//	          longest prefix (endpoint.List.Entries)
//	events    a ring of the refused calls (events.h, [Guest.OnDenied])
//
// Policy 0 has no entries: from the moment of attaching until its policy is
// complete, a guest is denied everything. [Guest.Update] writes the new entries
// under a new number and swaps the number with one write: a call sees the old or the
// new list. The old one is removed later, when no program can be reading it.
//
// Programs are attached without a link. They stay when this process dies, with its maps, and go when the
// cgroup is removed: a guest is never without them. What is pinned is for the next process to find; [Collect]
// removes it. Closing a [Guest] closes its network rather than opening it.
//
// To find the programs costs about 0.3 ms of a processor, to load them 3, nearly all of it the verifier's; attaching one more
// guest 0.1 ms. A caller in a hurry runs [Load] while the container is made.
//
// # Files
//
// Where the kernel takes LSM programs, [LoadFiles] attaches those of lsm.bpf.c to the
// whole host, once, and pins them; [FilePrograms.Attach] then holds one guest. See
// lsm.bpf.c for what is decided, path.h for how, and pins.go for how long.
//
// # Throttling
//
// [Throttles] hears from the scheduler when a guest is held back by its cpu limit. It
// holds nothing, so it does not outlive the process: see sched.bpf.c.
package enforce
