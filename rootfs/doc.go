// Package rootfs builds the root filesystem that guests run in: one CPython,
// its standard library, the shared libraries these need, the psi agent, and
// nothing else. No shell, no package manager, no setuid file.
//
// A build asks the interpreter where it lives, plans every path of the root
// in memory, has the interpreter compile what it will run, and writes the
// plan out as a directory, a tar archive or an OCI image:
//
//	askInterpreter ─► plan (tree of entries) ─► libraries ─► bytecode ─► digest ─► dir | tar | oci
//	                  base, stdlib, site, agent  (ELF closure)
//
// Wherever the host keeps its Python, the root looks the same: the prefix is
// /usr, libraries lie where the dynamic loader looks by default, and all
// entries belong to 0:0, are world-readable and carry one fixed time. The
// digest covers path, type, mode, content and link target of every entry, so
// the same input gives the same digest in every format and on every run.
//
// Bytecode is "unchecked": guests neither compare a source's time nor read
// it, and a root that is mounted read-only is never written to.
//
// Use it to make roots. To read facts about a built one, use
// pkg/bundle.Inspect, which does not drag the builder in.
package rootfs
