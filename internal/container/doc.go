// Package container makes, watches and removes the containers of psi. It is the
// only package that imports libcontainer, so that the rest of the project speaks
// of bundles, guests and limits and never of runc's types.
//
// One container goes through these steps, and Create reads as that list:
//
//	plan      the spec is copied and completed, every name is chosen; nothing is touched
//	claim     the journal names what is about to be made, then name and host ids are taken
//	root      io.psi.ids=auto: an overlay over the bundle's root, for this guest alone
//	state     libcontainer's state directory; the cgroups are chosen and written down
//	init      libcontainer starts `psi-runtime init`: namespaces, mounts, seccomp
//	detach    our own mount of the root goes; the guest keeps it in its mount namespace
//
// After Create the process is blocked on a FIFO; Start lets it run. If a step
// fails, the steps before it are undone, newest first. If the process that runs
// Create is killed instead, GC does the same from the journal.
//
// What is on the host while a guest lives:
//
//	RunDir/<id>@        the journal, flocked by the process that owns the container; its
//	                    last line is in force (with another root: <id>@<digest of the root>)
//	RunDir/@<uid>       hard link to the journal: the claim on the host ids
//	RunDir/<id>@.root/  where the root was mounted while it was made; empty
//	RunDir/owners/<x>/  a supervisor's own directory, flocked by it
//	<root>/<id>/        libcontainer's state
//	<cgroup>/psi/<id>   per hierarchy
//
// With the last guest all of this goes, except RunDir itself.
//
// Do not use this package for a process that shares the caller's namespaces: it
// starts containers, not commands.
package container
