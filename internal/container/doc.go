// Package container makes, watches and removes the containers of psi. It is the
// only package that imports libcontainer, so that the rest of the project speaks
// of bundles, guests and limits and never of runc's types.
//
// One container goes through these steps, and Create reads as that list:
//
//	plan      the spec is copied and completed, every name is chosen; nothing is touched
//	claim     a journal entry names everything that is about to be made
//	ids       io.psi.ids=auto: one host uid and gid nobody else has (RunDir/ids)
//	root      io.psi.ids=auto: an overlay over the bundle's root, for this guest alone
//	cgroups   the leaf groups, made here so that nobody removes their parents meanwhile
//	init      libcontainer starts `psi-runtime init`: namespaces, mounts, seccomp
//	detach    our own mount of the root goes; the guest keeps it in its mount namespace
//
// After Create the process is blocked on a FIFO; Start lets it run. If a step
// fails, the steps before it are undone, newest first. If the process that runs
// Create is killed instead, GC does the same from the journal.
//
// What is on the host while a guest lives:
//
//	RunDir/owners/<owner>/lock               flock held by the process that owns the guests
//	RunDir/owners/<owner>/guests/<id>.json   the journal entry
//	RunDir/ids/<uid>                         one file per id in use
//	<root>/<id>/                             libcontainer's state
//	<root>/<id>@                             symlink to the journal entry: the claim on the name
//	<cgroup>/psi/<id>                        per hierarchy
//
// Do not use this package for a process that shares the caller's namespaces: it
// starts containers, not commands.
package container
